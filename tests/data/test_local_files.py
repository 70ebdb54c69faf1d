import os
import socket

import pytest

from carbrand import errors
from carbrand.data import local_files, paths


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")


def names_below(root):
    return sorted(os.path.relpath(path, root) for path in local_files.walk(paths.Pattern(str(root))))


def test_a_match_has_path_and_size(tmp_path):
    write(tmp_path, "a/1.jpg", "a/2.png")
    assert list(local_files.match(f"{tmp_path}/*/*.jpg")) == [(f"{tmp_path}/a/1.jpg", 5)]
    assert list(local_files.match(f"{tmp_path}/a/2.png")) == [(f"{tmp_path}/a/2.png", 5)]
    assert list(local_files.match(f"{tmp_path}/none/*")) == []


def test_linked_folders_and_files_are_followed(tmp_path):
    write(tmp_path, "elsewhere/x/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "photos/b").mkdir(parents=True)
    (tmp_path / "photos/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/b/3.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    assert names_below(tmp_path / "photos") == ["a/2.jpg", "a/x/1.jpg", "b/3.jpg"]


def test_links_that_lead_back_end(tmp_path, caplog):
    write(tmp_path, "a/1.jpg", "b/x/1.jpg")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "b/x/again").symlink_to(tmp_path / "b")
    assert names_below(tmp_path) == ["a/1.jpg", "b/x/1.jpg"]
    assert "left out 2 links that lead back to a folder they lie in" in caplog.text


def test_what_is_no_regular_file_is_left_out_with_a_warning(tmp_path, caplog):
    write(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a/pipe.jpg")
    (tmp_path / "a/gone.jpg").symlink_to(tmp_path / "none")
    (tmp_path / "a/self.jpg").symlink_to(tmp_path / "a/self.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "a/socket"))
        assert names_below(tmp_path) == ["a/1.jpg"]
    assert "left out 4 entries that are no regular files" in caplog.text


def test_a_folder_that_cannot_be_listed_raises(tmp_path, monkeypatch):
    write(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(errors.DataError, match=r"/b: cannot list this folder \(Permission denied\)"):
        names_below(tmp_path)


def test_a_folder_that_cannot_hold_what_fits_is_not_listed(tmp_path, monkeypatch):
    write(tmp_path, "a/1.jpg", "a/deep/1.jpg", "b/1.jpg")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(os.path.relpath(path, tmp_path)) or scandir(path))
    assert [path for path, _ in local_files.match(f"{tmp_path}/[a]/*.jpg")] == [f"{tmp_path}/a/1.jpg"]
    assert sorted(listed) == [".", "a"]


def test_what_is_a_folder_is_no_wildcard(tmp_path):
    write(tmp_path, "set[1]/a/1.jpg", "set1/a/2.jpg")
    assert [path for path, _ in local_files.match(f"{tmp_path}/set[1]/*/*.jpg")] == [f"{tmp_path}/set[1]/a/1.jpg"]
    assert [path for path, _ in local_files.match(f"{tmp_path}/set[12]/*/*.jpg")] == [f"{tmp_path}/set1/a/2.jpg"]


def test_an_opened_file_has_its_bytes(tmp_path):
    write(tmp_path, "1.jpg")
    with local_files.open(f"{tmp_path}/1.jpg") as file:
        assert file.read() == b"12345"


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(errors.DataError, match="pipe: not a regular file"):
        local_files.open(str(tmp_path / "pipe"))


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(errors.DataError, match=r"1\.jpg: no such file"):
        local_files.open(f"{tmp_path}/1.jpg")


def test_a_file_without_permission_raises(tmp_path, monkeypatch):
    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(errors.DataError, match=r"1\.jpg: no permission to read it"):
        local_files.open(f"{tmp_path}/1.jpg")
