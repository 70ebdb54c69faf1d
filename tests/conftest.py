"""Data that tests of several stages need."""

import contextlib
import pathlib
import shutil

import gin
import pytest


@pytest.fixture(autouse=True)
def no_bindings_of_other_tests():
    """Commands bind gin's parameters for their process, which is all tests' here."""
    yield
    gin.clear_config(clear_constants=True)


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
    from beam_jobs import build_dataset, build_output

    folder = tmp_path_factory.mktemp("drawn_records") / "records"
    build_dataset.run(drawn_photos, folder, build_output.Choices(resize_short_px=96), num_shards=2)
    return folder


@pytest.fixture(scope="session")
def tiny_run(drawn_records, tmp_path_factory):
    """A ResNet-50 on 32-pixel images after a few steps: every stage after it has something to work on."""
    from carbrand.data.preprocess import Preprocess
    from carbrand.training import train

    folder = tmp_path_factory.mktemp("tiny") / "run"
    train.run(drawn_records, folder, epochs=1.5, batch_size=8, preprocess=Preprocess(image_size_px=32))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_run, drawn_records, tmp_path_factory):
    """The export of `tiny_run`."""
    from carbrand.serving import export

    return export.run(tiny_run, tmp_path_factory.mktemp("tiny_model") / "model", data=drawn_records)


@pytest.fixture(scope="session")
def real_data():
    """Folders of real photos, which lie beside some checkouts and are never part of one."""
    folder = pathlib.Path(__file__).parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("the real photos are not beside this checkout")
    return folder.resolve()


@pytest.fixture(scope="module")  # not longer: while it is open, no other event loop can run in this thread
def browser():
    """Headless Chromium, of this machine."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    chromium = next(found, None)
    if chromium is None:
        pytest.skip("no Chromium here; .ci/run installs one")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright, contextlib.ExitStack() as stack:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        stack.callback(started.close)
        yield started
