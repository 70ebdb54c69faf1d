import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest

from beam_jobs import predict_images
from carbrand.errors import ConfigError, DataError
from carbrand.serving import predict


@pytest.fixture(scope="module")
def rows(tiny_model, drawn_photos, tmp_path_factory):
    """What `carbrand predict` says of the drawn photos, some of which are broken."""
    path = tmp_path_factory.mktemp("predict") / "rows.jsonl"
    predict.run(tiny_model, [str(drawn_photos)], output_format="jsonl", output=path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def read(folder):
    return [json.loads(line) for path in sorted(folder.glob("predictions-*.jsonl")) for line in path.open()]


@pytest.mark.parametrize(("path", "message"), [("-", "a photo from stdin goes to no worker"), ("{folder}", "lies in")])
def test_paths_that_workers_cannot_take_are_refused(tiny_model, tmp_path, path, message):
    with pytest.raises(ConfigError, match=message):
        predict_images.run(tiny_model, [path.format(folder=tmp_path)], output=tmp_path / "out")


def assert_same(found, expected):
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.get("error") == theirs.get("error")
        assert ours.get("brand") == theirs.get("brand")
        assert ours.get("probabilities") == pytest.approx(theirs.get("probabilities"), abs=1e-5)


def test_shards_hold_what_predict_says_in_its_order(tiny_model, drawn_photos, rows, tmp_path):
    output = tmp_path / "out"
    total, failures = predict_images.run(tiny_model, [str(drawn_photos)], output, photos_per_shard=20, workers=1)
    assert (total, failures) == (len(rows), sum("error" in row for row in rows))
    assert failures > 0
    assert_same(read(output), rows)
    names = sorted(path.name for path in output.glob("predictions-*"))
    assert names == [f"predictions-{n:05d}-of-00003.jsonl" for n in range(3)]
    assert json.loads((output / predict_images.SUMMARY).read_text())["failures"] == failures


def test_parquet_has_a_column_per_brand(tiny_model, drawn_photos, rows, tmp_path):
    predict_images.run(tiny_model, [str(drawn_photos / "arvena")], tmp_path, output_format="parquet", workers=1)
    table = pyarrow.parquet.read_table(tmp_path / "predictions-00000-of-00001.parquet").to_pylist()
    expected = [row for row in rows if "/arvena/" in row["path"]]
    for ours, theirs in zip(table, expected, strict=True):
        assert (ours["path"], ours["brand"], ours["error"]) == (
            theirs["path"],
            theirs.get("brand"),
            theirs.get("error"),
        )
        for brand, share in theirs.get("probabilities", {}).items():
            assert ours[f"probability_{brand}"] == pytest.approx(share, abs=1e-5)


def test_only_missing_shards_are_predicted_again(tiny_model, drawn_photos, rows, tmp_path):
    arguments = (tiny_model, [str(drawn_photos)], tmp_path)
    predict_images.run(*arguments, photos_per_shard=20, workers=1)
    first, second, _ = sorted(tmp_path.glob("predictions-*.jsonl"))
    first.unlink()
    (tmp_path / f".{first.name}.abc.tmp").touch()
    before = second.stat().st_mtime_ns
    predict_images.run(*arguments, photos_per_shard=20, workers=1)
    assert second.stat().st_mtime_ns == before
    assert_same(read(tmp_path), rows)
    assert not list(tmp_path.glob(".predictions*"))


def test_shards_with_photos_that_changed_are_predicted_again(tiny_model, drawn_photos, tmp_path):
    photos = shutil.copytree(drawn_photos / "arvena", tmp_path / "photos")
    arguments = (tiny_model, [str(photos)], tmp_path / "out")
    predict_images.run(*arguments, photos_per_shard=2, workers=1)
    before = read(tmp_path / "out")
    paths = sorted((tmp_path / "out").glob("predictions-*.jsonl"))
    times = [path.stat().st_mtime_ns for path in paths]
    shutil.copy2(before[-1]["path"], tmp_path / "other.jpg")  # with its old time
    os.replace(tmp_path / "other.jpg", before[0]["path"])
    predict_images.run(*arguments, photos_per_shard=2, workers=1)
    after = [path.stat().st_mtime_ns for path in paths]
    assert after[0] > times[0]
    assert after[1:] == times[1:]


def test_another_job_in_the_folder_raises(tiny_model, drawn_photos, tmp_path):
    predict_images.run(tiny_model, [str(drawn_photos / "arvena")], tmp_path, workers=1)
    with pytest.raises(ConfigError, match="holds predictions with photos 9, now 10. Give another folder"):
        predict_images.run(tiny_model, [str(drawn_photos / "arvena"), _one(drawn_photos)], tmp_path, workers=1)


def test_another_model_in_the_same_folder_is_another_job(tiny_model, drawn_photos, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    arguments = (model, [str(_one(drawn_photos))], tmp_path / "out")
    predict_images.run(*arguments, workers=1)
    described = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**described, "temperature": 3.0}))
    with pytest.raises(ConfigError, match="holds predictions with model_fingerprint .* Give another folder"):
        predict_images.run(*arguments, workers=1)
    (tmp_path / "out" / predict_images._JOB).write_text("{")
    with pytest.raises(ConfigError, match="damaged .* Give another folder"):
        predict_images.run(*arguments, workers=1)


def _one(drawn_photos):
    return str(drawn_photos / "arvena" / "0001.jpg")


def test_a_folder_with_something_else_raises(tiny_model, drawn_photos, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds something else than predictions"):
        predict_images.run(tiny_model, [_one(drawn_photos)], tmp_path)


@pytest.mark.slow
def test_a_path_that_is_wrong_can_be_corrected(tiny_model, drawn_photos, tmp_path):
    photo = _one(drawn_photos)
    with pytest.raises(DataError, match="no such file or folder"):
        predict_images.run(tiny_model, [photo, "typo.jpg"], tmp_path / "out")
    assert predict_images.run(tiny_model, [photo], tmp_path / "out") == (1, 0)


def test_nothing_to_predict_raises(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="No photos are given"):
        predict_images.run(tiny_model, [], tmp_path / "out")
    with pytest.raises(DataError, match="no such file or folder"):
        predict_images.run(tiny_model, [str(tmp_path / "none")], tmp_path / "out")


def _command(model, photos, output, workers):
    command = ["-m", "carbrand", "predict", "--model", model, photos, "--output", output, "--workers", str(workers)]
    return [sys.executable, *map(str, command)]


@pytest.mark.slow
def test_two_workers_say_the_same(tiny_model, drawn_photos, rows, tmp_path):
    done = subprocess.run(
        _command(tiny_model, drawn_photos, tmp_path, 2), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert f"of {len(rows)} photos could not be read." in done.stderr
    assert_same(read(tmp_path), rows)


@pytest.mark.slow
def test_a_killed_job_goes_on(tiny_model, drawn_photos, rows, tmp_path, monkeypatch):
    many = tmp_path / "many"
    for copy in range(12):
        shutil.copytree(drawn_photos, many / f"{copy:02d}")
    output = tmp_path / "out"
    process = subprocess.Popen(_command(tiny_model, many, output, 2), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list(output.glob("predictions-*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in output.glob("predictions-*.jsonl")}
    assert kept
    assert not (output / predict_images.SUMMARY).exists()
    subprocess.run(_command(tiny_model, many, output, 2), stderr=subprocess.DEVNULL, check=False, timeout=300)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    prefix = len(str(drawn_photos))
    expected = [{**row, "path": f"{many}/{copy:02d}{row['path'][prefix:]}"} for copy in range(12) for row in rows]
    assert_same(read(output), expected)
