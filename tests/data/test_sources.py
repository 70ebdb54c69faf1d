import logging
import os
import pathlib

import pytest

from carbrand import errors
from carbrand.data import sources


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_every_visible_file_below_a_brand_folder_is_a_photo(tmp_path):
    touch(tmp_path, "bmw/2.jpg", "bmw/old/1", "bmw/.hidden.jpg", ".git/x.jpg", "audi/.cache/y.jpg", "audi/a.png")
    photos = sources.list_folder(tmp_path)
    assert [(photo.name, photo.brand) for photo in photos] == [
        ("audi/a.png", "audi"),
        ("bmw/2.jpg", "bmw"),
        ("bmw/old/1", "bmw"),
    ]
    assert photos[2].uri == str(tmp_path / "bmw/old/1")


@pytest.mark.parametrize("name", ["Aston Martin", "aston-martin", " ASTON__MARTIN ", "aston _ martin"])
def test_spellings_of_one_brand_are_one_brand(name):
    assert sources.normalise_brand(name) == "aston_martin"


def test_files_outside_brand_folders_are_left_out_with_a_warning(tmp_path, caplog):
    touch(tmp_path, "readme.txt", "a/1.jpg", "b/1.jpg")
    with caplog.at_level(logging.WARNING):
        assert len(sources.list_folder(tmp_path)) == 2
    assert "left out 1 files that lie in no brand folder" in caplog.text


def test_a_name_that_is_no_utf8_is_shown_escaped_and_can_be_opened(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / os.fsdecode(b"a/\xff.jpg")).touch()
    photo = sources.list_folder(tmp_path)[1]
    assert photo.name == r"a/\xff.jpg"
    assert pathlib.Path(photo.uri).exists()


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(errors.DataError, match="cars: no such folder"):
        sources.list_folder(tmp_path / "cars")


def test_a_file_instead_of_a_folder_raises(tmp_path):
    touch(tmp_path, "cars.zip")
    with pytest.raises(errors.DataError, match=r"cars\.zip: not a folder"):
        sources.list_folder(tmp_path / "cars.zip")


def test_a_folder_without_photos_raises(tmp_path):
    (tmp_path / "bmw").mkdir()
    with pytest.raises(errors.DataError, match=r"no photos. Put the photos of each brand in a folder"):
        sources.list_folder(tmp_path)


def test_one_brand_raises(tmp_path):
    touch(tmp_path, "bmw/1.jpg", "BMW/2.jpg")
    with pytest.raises(errors.DataError, match=r"needs at least two brands, found only 'bmw'.*one folder per brand"):
        sources.list_folder(tmp_path)


def test_a_folder_named_with_no_letters_raises(tmp_path):
    touch(tmp_path, "_/1.jpg", "bmw/2.jpg")
    with pytest.raises(errors.DataError, match="name has no letters or digits"):
        sources.list_folder(tmp_path)


def test_a_folder_that_cannot_be_listed_raises(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(errors.DataError, match=r"/b: cannot list this folder \(Permission denied\)"):
        sources.list_folder(tmp_path)
