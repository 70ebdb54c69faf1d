import pytest

from carbrand.data import cache, images

KEY = "ab12"
PHOTO = images.NormalisedImage(
    encoded=b"\xff\xd8\n\n\xff\xd9",
    height=3,
    width=4,
    original_height=6,
    original_width=8,
    perceptual_hash="00",
    mean_rgb=(1, 2, 3),
)
REJECTION = cache.Rejection("not_an_image", "starts with b'\\n'")


@pytest.mark.parametrize("entry", [PHOTO, REJECTION])
def test_load_gives_back_what_was_stored(tmp_path, entry):
    cache.store(tmp_path, KEY, entry)
    assert cache.load(tmp_path, KEY) == entry


def test_a_missing_entry_is_none(tmp_path):
    assert cache.load(tmp_path, KEY) is None


def test_every_torn_or_changed_entry_is_none(tmp_path):
    cache.store(tmp_path, KEY, PHOTO)
    path = tmp_path / "ab" / KEY
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert cache.load(tmp_path, KEY) is None
    path.write_bytes(content[:-1] + b"x")
    assert cache.load(tmp_path, KEY) is None


def test_an_entry_of_nothing_is_none(tmp_path):
    cache.store(tmp_path, KEY, PHOTO)
    (tmp_path / "ab" / KEY).write_bytes(b"00000000\n")  # the checksum of nothing
    assert cache.load(tmp_path, KEY) is None


def test_storing_leaves_no_temporary_file(tmp_path):
    cache.store(tmp_path, KEY, PHOTO)
    cache.store(tmp_path, KEY, REJECTION)
    assert [path.name for path in (tmp_path / "ab").iterdir()] == [KEY]
    assert cache.load(tmp_path, KEY) == REJECTION


def test_an_entry_of_other_fields_is_none(tmp_path):
    cache.store(tmp_path, KEY, PHOTO)
    path = tmp_path / "ab" / KEY
    path.write_bytes(path.read_bytes().replace(b"perceptual_hash", b"pixel_hash"))
    assert cache.load(tmp_path, KEY) is None


def test_an_entry_that_cannot_be_written_leaves_no_temporary_file(tmp_path):
    (tmp_path / "ab" / KEY).mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        cache.store(tmp_path, KEY, PHOTO)
    assert [path.name for path in (tmp_path / "ab").iterdir()] == [KEY]
