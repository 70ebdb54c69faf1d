import hashlib
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from carbrand.demo import draw
from carbrand.demo.brands import BRANDS
from carbrand.demo.cars import BODIES
from carbrand.errors import ConfigError


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw.draw_photos(folder, photos_per_brand=8)
    return tree(folder)


def test_same_seed_draws_the_same_bytes(photos, tmp_path):
    draw.draw_photos(tmp_path, photos_per_brand=8)
    assert tree(tmp_path) == photos


def test_other_seed_draws_other_photos(photos):
    assert draw.photo(BRANDS[0], number=1, seed=1) != photos["arvena/0001.jpg"]


def test_a_photo_does_not_depend_on_how_many_are_drawn(photos, tmp_path):
    draw.draw_photos(tmp_path, photos_per_brand=2)
    fewer = tree(tmp_path)
    assert fewer == {name: photos[name] for name in fewer}


def test_there_are_at_least_six_brands_with_parts_of_their_own():
    assert len(BRANDS) >= 6
    for part in ("name", "grille", "lamps", "badge"):
        assert len({getattr(brand, part) for brand in BRANDS}) == len(BRANDS)


def test_every_brand_prefers_a_body_that_exists():
    assert {brand.body for brand in BRANDS} <= BODIES.keys()


def test_tree_holds_the_numbered_photos_and_the_six_rejects(photos):
    numbered = {f"{brand.name}/{number:04d}.jpg" for brand in BRANDS for number in range(1, 9)}
    assert photos.keys() == numbered | {*draw.BROKEN, *draw.DUPLICATES}
    assert (len(draw.BROKEN), len(draw.DUPLICATES)) == (3, 3)


def test_every_photo_that_is_not_broken_decodes(photos):
    for name in photos.keys() - {*draw.BROKEN}:
        with Image.open(io.BytesIO(photos[name])) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert 240 <= image.width <= 420
            assert 1.3 < image.width / image.height < 1.6


def test_no_broken_photo_decodes(photos):
    for name in draw.BROKEN:
        with pytest.raises(OSError, match=r"cannot identify image file|truncated"):
            Image.open(io.BytesIO(photos[name])).load()


def test_only_the_duplicates_repeat_a_photo(photos):
    by_content = {}
    for name, content in photos.items():
        by_content.setdefault(hashlib.sha256(content).hexdigest(), []).append(name)
    repeated = [names for names in by_content.values() if len(names) > 1]
    assert repeated == [[name.replace("copy", "0001"), name] for name in draw.DUPLICATES]


def test_photos_differ_in_light_and_size(photos):
    images = [Image.open(io.BytesIO(content)) for name, content in photos.items() if "/000" in name]
    assert len({image.size for image in images}) > 20
    assert np.ptp([np.asarray(image).mean() for image in images]) > 60


def test_no_photos_at_all_raises(tmp_path):
    with pytest.raises(ConfigError, match=r"photos_per_brand=0 draws nothing. Use 1 or more."):
        draw.draw_photos(tmp_path, photos_per_brand=0)
