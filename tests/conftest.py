"""Data that tests of several stages need."""

import pathlib

import pytest

SHARED = pathlib.Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def drawn_photos(tmp_path_factory):
    """Eight photos of each of six drawn brands, three broken files and three copies."""
    from carbrand.demo import draw

    folder = tmp_path_factory.mktemp("drawn") / "photos"
    draw.draw_photos(folder, photos_per_brand=8)
    return folder


@pytest.fixture(scope="session")
def drawn_records(drawn_photos, tmp_path_factory):
    """The records of `drawn_photos`, in two training shards."""
    from beam_jobs import build_dataset

    folder = tmp_path_factory.mktemp("drawn_records") / "records"
    build_dataset.run(drawn_photos, folder, num_shards=2, resize_short_px=96)
    return folder


@pytest.fixture(scope="session")
def cars6():
    """Real photos of six brands, where this checkout has them beside it."""
    folder = SHARED / "data" / "cars6"
    if not folder.is_dir():
        pytest.skip("the real photos of cars6 are not on this machine")
    return folder
