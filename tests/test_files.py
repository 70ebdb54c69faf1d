import json
import os
import stat
import subprocess
import sys

import pytest

from carbrand import files


def fail_in_the_middle(path):
    with files.atomic_writer(path) as file:
        file.write(b"half")
        raise ValueError("stop")


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    files.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ValueError, match="stop"):
        fail_in_the_middle(tmp_path / "a.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_written_files_have_the_usual_rights(tmp_path):
    files.write_text(tmp_path / "ours", "")
    (tmp_path / "theirs").touch()
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "theirs").stat().st_mode)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "there")
    assert os.read(reader, 9) == b"there"
    os.close(reader)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        files.write_text(tmp_path, "")


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1"])
def test_what_stdout_is_written_to_stays(tmp_path, path):
    (tmp_path / "all.csv").write_text("old\n")
    code = "import sys; from carbrand import files; files.write_text(sys.argv[1], 'new\\n'); print('end')"
    with (tmp_path / "all.csv").open("a") as out:
        subprocess.run([sys.executable, "-c", code, path], stdout=out, check=True)
    assert (tmp_path / "all.csv").read_text() == "old\nnew\nend\n"


def test_folders_are_made(tmp_path):
    files.write_json(tmp_path / "a" / "b.json", {"é": [1]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"é": [1]}


def test_jsonl_has_one_row_a_line(tmp_path):
    files.write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"a": "ü"}])
    assert (tmp_path / "rows.jsonl").read_text() == '{"a": 1}\n{"a": "ü"}\n'


def test_half_a_line_of_a_log_is_left_out(tmp_path):
    assert list(files.read_log(tmp_path / "log.jsonl")) == []
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "brand": "\xc3\n{"step": 3}\n{"st')
    assert list(files.read_log(tmp_path / "log.jsonl")) == [{"step": 1}, {"step": 3}]


def test_sha256_of_nothing():
    assert files.sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert files.fingerprint({"a": 1, "b": 2}) == files.fingerprint({"b": 2, "a": 1})


def test_shard_name():
    assert files.shard_name("train", 3, 8) == "carbrand-train.tfrecord-00003-of-00008"


def test_a_removed_tree_is_gone_whatever_its_depth(tmp_path):
    for name in ("a/b/c/file", "a/file", "file", "d/e/file"):
        files.write_text(tmp_path / "tree" / name, "x")
    files.write_text(tmp_path / "other", "x")
    files.remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
