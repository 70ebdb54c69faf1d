import io
import sys

import pytest

from carbrand.data import local_files, photo_paths
from carbrand.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """A folder whose name looks like a pattern, with two files."""
    made = tmp_path / "photos [2020]"
    made.mkdir()
    for name in ("b.jpg", "a.jpg", ".hidden.jpg"):
        (made / name).touch()
    return made


def expand(*given):
    return list(photo_paths.expand(map(str, given), local_files))


def test_a_folder_is_one_whatever_its_name_looks_like(folder):
    assert expand(folder) == [str(folder / "a.jpg"), str(folder / "b.jpg")]
    assert expand(f"{folder.parent}/photos*/b*") == [str(folder / "b.jpg")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "an empty path"),
        ("nothere.jpg", "no such file or folder"),
        ("nothere*", "no file fits this pattern"),
    ],
)
def test_what_is_not_there_is_told(folder, monkeypatch, given, message):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=message):
        expand("a.jpg", given)


def test_empty_lines_and_a_mark_of_the_byte_order_are_no_paths(tmp_path, monkeypatch):
    text = "\ufeffa\v\u2028.jpg\n\r\nb.jpg\r\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8", newline="")
    assert list(photo_paths.read_list(str(tmp_path / "list.txt"), local_files)) == ["a\v\u2028.jpg", "b.jpg"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(text, newline=""))
    assert list(photo_paths.read_list("-", local_files)) == ["a\v\u2028.jpg", "b.jpg"]
