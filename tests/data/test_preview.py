import numpy as np
import pytest
from PIL import Image

from carbrand.data import manifest, pipeline, preview
from carbrand.data.augment import Augment
from carbrand.data.contact_sheet import MARGIN_PX
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError, DataError

SMALL = Preprocess(image_size_px=128)  # shown as large as they are
MIXED = Augment(color_jitter=0.2, mixup_alpha=0.2, cutmix_alpha=1.0)


def drawn(folder, path, **options):
    preview.run(folder, path, **{"photos": 3, "preprocess": SMALL, **options})
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def rows_with(sheet, image):
    """From the top, the rows of the sheet at which `image` stands at its left margin."""
    height, width, _ = image.shape
    left = sheet[:, MARGIN_PX : MARGIN_PX + width]
    starts = np.flatnonzero((left[:, :8] == image[0, :8]).all((1, 2)))
    return [start for start in starts if np.array_equal(left[start : start + height], image)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_first_photo_is_that_of_the_pipeline(drawn_records, tmp_path, split):
    options = {"batch_size": 8, "seed": 3, "augment": MIXED}
    sheet = drawn(drawn_records, tmp_path / "sheet.png", split=split, **options)
    images, _ = next(iter(pipeline.make_dataset(drawn_records, split, preprocess=SMALL, **options)))
    assert len(rows_with(sheet, np.rint(images[0]).astype(np.uint8))) == 1


def test_step_is_where_training_is_then(drawn_records, tmp_path):
    options = {"batch_size": 8, "augment": Augment(flip=False)}
    sheet = drawn(drawn_records, tmp_path / "sheet.png", step=2, **options)
    stream = pipeline.make_dataset(drawn_records, "train", preprocess=SMALL, start_step=2, **options)
    assert rows_with(sheet, next(iter(stream))[0][0].numpy())


def test_evaluated_photo_and_its_variation_stand_side_by_side(drawn_records, tmp_path):
    sheet = drawn(drawn_records, tmp_path / "sheet.png", batch_size=8)
    plain = {"batch_size": 8, "augment": Augment(enabled=False)}
    evaluated, _ = next(iter(pipeline.make_dataset(drawn_records, "train", preprocess=SMALL, **plain)))
    varied, _ = next(iter(pipeline.make_dataset(drawn_records, "train", preprocess=SMALL, batch_size=8)))
    (top,) = rows_with(sheet, evaluated[0].numpy())
    np.testing.assert_array_equal(sheet[top : top + 128, MARGIN_PX + 136 : MARGIN_PX + 264], varied.numpy()[0])
    others = [sheet[top : top + 128, MARGIN_PX + 136 * column :][:, :128] for column in range(2, 8)]
    assert all((other != varied.numpy()[0]).any() for other in others)


def test_photos_that_are_not_varied_are_shown_once(drawn_records, tmp_path):
    varied = drawn(drawn_records, tmp_path / "varied.png")
    plain = drawn(drawn_records, tmp_path / "plain.png", augment=Augment(enabled=False))
    assert len(plain) < len(varied) - 3 * 128


def test_more_photos_than_a_batch_holds_come_from_the_next_ones(drawn_records, tmp_path):
    sheet = drawn(drawn_records, tmp_path / "sheet.png", photos=9, batch_size=4, split="test")
    images = [image for batch, _ in pipeline.make_dataset(drawn_records, "test", batch_size=4, preprocess=SMALL)
              for image in batch.numpy()]  # fmt: skip
    assert bool(rows_with(sheet, images[0]))
    assert bool(rows_with(sheet, images[8])) == (len(images) > 8)


def test_same_bytes_for_the_same_preview(drawn_records, tmp_path):
    for name in ("a.png", "b.png"):
        drawn(drawn_records, tmp_path / name, augment=MIXED)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_an_existing_picture_is_replaced(drawn_records, tmp_path):
    (tmp_path / "sheet.png").write_text("old")
    assert drawn(drawn_records, tmp_path / "sheet.png", split="test").shape[2] == 3


def test_captions():
    brands = ("audi", "bmw", "saab")
    assert preview.caption(np.int32(1), brands) == ["bmw"]
    assert preview.caption(np.float32([0.37, 0, 0.63]), brands) == ["saab 63 %", "audi 37 %"]
    assert preview.caption(np.float32([0.5, 0.5, 0]), brands) == ["audi 50 %", "bmw 50 %"]


def test_shares_too_small_to_see_are_left_out():
    assert preview.caption(np.float32([0, 0.997, 0.003]), ("audi", "bmw", "saab")) == ["bmw"]
    assert preview.caption(np.float32([0, 1, 0]), ("audi", "bmw", "saab")) == ["bmw"]


def test_changes_are_named_as_gin_names_them():
    settings = {"augment": Augment(flip=False, cutmix_alpha=1.0), "stream": Stream(sampling="sqrt")}
    assert preview.changes(settings) == [
        "augment.flip = False",
        "augment.cutmix_alpha = 1.0",
        "stream.sampling = 'sqrt'",
    ]
    assert preview.changes({"augment": Augment(), "preprocess": Preprocess()}) == ["augment, preprocess as by default"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"photos": 0}, ConfigError, "photos=0: give a whole number at least 1 and at most 1000"),
        ({"step": 99, "split": "test"}, ConfigError, "step=99: the test split has steps 0 to 0. Give one of them"),
        ({"split": "tset"}, DataError, "no split named 'tset'"),
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"batch_size": 5, "augment": MIXED}, ConfigError, "^batch_size: 5 photos"),
    ],
)
def test_what_cannot_be_raises(drawn_records, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        preview.run(drawn_records, tmp_path / "sheet.png", **options)
    assert not list(tmp_path.iterdir())


def test_wrong_suffix_raises_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"sheet\.bmp: give a name for a picture"):
        preview.run(tmp_path / "none", tmp_path / "sheet.bmp")


def test_damaged_records_raise(drawn_records, tmp_path):
    for path in drawn_records.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for shard in manifest.load(tmp_path).splits["test"].shards:
        content = bytearray((tmp_path / shard.name).read_bytes())
        content[100] ^= 1
        (tmp_path / shard.name).write_bytes(content)
    with pytest.raises(DataError, match="record 0"):
        preview.run(tmp_path, tmp_path / "sheet.png", split="test", stream=Stream(max_damaged_fraction=0))
