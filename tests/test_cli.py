"""The command as a user types it: one line and the exit code for each thing that can be wrong."""

import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from carbrand import cli

STAGES = ("demo", "build", "verify", "preview", "doctor", "train", "tune")
STAGES += ("evaluate", "explain", "export", "predict", "serve", "monitor", "review")


def carbrand(*arguments):
    """Runs the command in this process; returns its exit code."""
    try:
        return cli._run(cli._parse(["carbrand", *map(str, arguments)]))
    except SystemExit as stop:
        return stop.code or 0


def one_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line and not line.startswith(("build:", "\r"))]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("stage", STAGES)
def test_help_has_an_example(stage, capsys):
    assert carbrand(stage, "--help") == 0
    assert f"example:\n  carbrand {stage}" in capsys.readouterr().out


def test_no_such_photos(tmp_path, capsys):
    assert carbrand("build", "--input", tmp_path / "none", "--output", tmp_path / "r") == 2
    assert "none: no such folder" in one_line(capsys)


def test_one_brand(drawn_photos, tmp_path, capsys):
    shutil.copytree(drawn_photos / "arvena", tmp_path / "photos" / "arvena")
    assert carbrand("build", "--input", tmp_path / "photos", "--output", tmp_path / "r") == 2
    assert "at least two brands" in one_line(capsys)


def test_brand_with_nothing_readable(drawn_photos, tmp_path, capsys):
    shutil.copytree(drawn_photos, tmp_path / "photos")
    (tmp_path / "photos" / "empty_brand").mkdir()
    (tmp_path / "photos" / "empty_brand" / "page.jpg").write_text("<!DOCTYPE html>")
    assert carbrand("build", "--input", tmp_path / "photos", "--output", tmp_path / "r") == 2
    assert "empty_brand" in one_line(capsys)
    assert not (tmp_path / "r" / "manifest.json").exists()


def test_empty_brand_folder(drawn_photos, tmp_path, capsys):
    shutil.copytree(drawn_photos, tmp_path / "photos")
    (tmp_path / "photos" / "saab").mkdir()
    assert carbrand("build", "--input", tmp_path / "photos", "--output", tmp_path / "r") == 2
    assert "saab: a brand's folder without a file" in one_line(capsys)


def test_bad_split(drawn_photos, tmp_path, capsys):
    assert carbrand("build", "--input", drawn_photos, "--output", tmp_path / "r", "--split", "0.8,0.3") == 2
    assert "--split=0.8,0.3" in one_line(capsys)


def test_verify_names_the_damaged_record_and_exits_with_3(drawn_records, tmp_path, capsys):
    assert carbrand("verify", drawn_records) == 0
    shutil.copytree(drawn_records, tmp_path / "records")
    shard = tmp_path / "records" / "carbrand-test.tfrecord-00000-of-00001"
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    capsys.readouterr()
    for options in ((), ("--workers", "1")):
        assert carbrand("verify", tmp_path / "records", *options) == 3
        output = capsys.readouterr()
        assert "carbrand-test.tfrecord-00000-of-00001" in output.out + output.err
        assert "record 0" in output.out + output.err
    assert carbrand("train", "--data", tmp_path / "records", "--run", tmp_path / "run") == 2
    assert "carbrand-test.tfrecord-00000-of-00001" in one_line(capsys)


def test_table_without_brands(tmp_path, capsys):
    (tmp_path / "photos.csv").write_text("path,make\na.jpg,audi\n")
    assert carbrand("build", "--input", tmp_path / "photos.csv", "--output", tmp_path / "r") == 2
    assert "brand" in one_line(capsys)


def test_choices_with_append(drawn_photos, drawn_records, tmp_path, capsys):
    options = ("--append", drawn_records, "--seed", "1")
    assert carbrand("build", "--input", drawn_photos, "--output", tmp_path / "r", *options) == 2
    assert "keeps its own choices" in one_line(capsys)


def test_misspelt_binding(drawn_records, tmp_path, capsys):
    run = ("train", "--data", drawn_records, "--run", tmp_path / "run", "--gin_param", "train.run.epoch=1")
    assert carbrand(*run) == 2
    assert "Did you mean train.run.epochs?" in one_line(capsys)


def test_preview_of_the_training_and_of_a_split(drawn_records, tmp_path, capsys):
    preview = ("preview", "--data", drawn_records, "--gin_file", "smoke", "--photos", "3")
    assert carbrand(*preview, "--output", tmp_path / "new" / "train.png") == 0
    assert capsys.readouterr().out == f"Preview: {tmp_path}/new/train.png\n"
    assert carbrand(*preview, "--output", tmp_path / "test.jpg", "--split", "test") == 0
    assert (tmp_path / "new" / "train.png").exists()
    assert (tmp_path / "test.jpg").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "sheet.gif"], "sheet.gif: give a name for a picture, which ends in .png, .jpg, .jpeg"),
        (["--split", "tset"], "no split named 'tset'"),
        (["--step", "99999"], "step=99999: give a whole number at least 0 and below"),
        (["--step", "99", "--split", "test"], "step=99: the test split has steps 0 to 0"),
        (["--photos", "0"], "photos=0: give a whole number at least 1"),
        (["--gin_param", "augment.cutmix=1.0"], "Did you mean augment.cutmix_alpha?"),
        (["--gin_param", "augment.cutmix_alpha=1.0", "--gin_param", "train.run.batch_size=5"], "an even multiple"),
    ],
)
def test_preview_that_cannot_be(drawn_records, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert carbrand("preview", "--data", drawn_records, "--output", "sheet.png", *options) == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_batch_that_does_not_divide(drawn_records, tmp_path, capsys):
    options = ("--gin_param", "hardware.replicas=1", "--gin_param", "train.run.batch_size=0")
    assert carbrand("train", "--data", drawn_records, "--run", tmp_path / "run", *options) == 2
    assert "train.run.batch_size=0: give a whole number at least 1" in one_line(capsys)


def test_odd_batch_that_is_to_be_mixed(drawn_records, tmp_path, capsys):
    options = ("--gin_param", "augment.cutmix_alpha=1.0", "--gin_param", "train.run.batch_size=5")
    assert carbrand("train", "--data", drawn_records, "--run", tmp_path / "run", *options) == 2
    assert "train.run.batch_size=5 does not divide among 1 replicas in pairs to be mixed" in one_line(capsys)


def test_records_of_another_version(drawn_records, tmp_path, capsys):
    content = json.loads((drawn_records / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "format_version": 99}))
    assert carbrand("train", "--data", tmp_path, "--run", tmp_path / "run") == 2
    assert "has format version 99, this carbrand reads version 2" in one_line(capsys)


def test_records_without_a_manifest(tmp_path, capsys):
    assert carbrand("train", "--data", tmp_path, "--run", tmp_path / "run") == 2
    assert "not a complete records folder" in one_line(capsys)


def test_too_many_rejects_exit_with_3(drawn_photos, tmp_path, capsys):
    options = ("--max_reject_fraction", "0.01")
    assert carbrand("build", "--input", drawn_photos, "--output", tmp_path / "r", *options) == 3
    assert "not_an_image" in one_line(capsys)


def test_unknown_flag_is_argparse_s_error(capsys):
    assert carbrand("train", "--dat", "x", "--run", "y") == 2
    assert "--data" in capsys.readouterr().err


def test_beam_options_go_to_stages_with_beam_only(capsys):
    assert carbrand("evaluate", "--model", "m", "--data", "x", "--", "--runner=X") == 2
    assert "only build, verify and predict do" in capsys.readouterr().err


def test_prediction_by_beam_needs_a_folder(tiny_model, capsys):
    assert carbrand("predict", "--model", tiny_model, "x", "--workers", "2") == 2
    assert "need --output, the folder for the predictions" in one_line(capsys)


def test_photos_are_kept_in_a_log_only(tiny_model, capsys):
    assert carbrand("serve", "--model", tiny_model, "--keep_photos") == 2
    assert "--keep_photos needs --log" in one_line(capsys)


def test_unknown_beam_option(drawn_photos, tmp_path, capsys):
    assert carbrand("build", "--input", drawn_photos, "--output", tmp_path / "r", "--", "--direct_num_wokers=2") == 2
    assert "no option of Apache Beam" in one_line(capsys)


@pytest.mark.slow
def test_flow_from_evaluation_to_prediction(tiny_run, drawn_records, drawn_photos, tmp_path, capsys):
    assert carbrand("evaluate", "--run", tiny_run, "--data", drawn_records, "--output", tmp_path / "report") == 0
    assert "accuracy" in capsys.readouterr().out
    assert carbrand("export", "--run", tiny_run, "--data", drawn_records, "--output", tmp_path / "model") == 0
    photo = drawn_photos / "arvena" / "0001.jpg"
    assert carbrand("predict", "--model", tmp_path / "model", photo) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(str(photo))
    assert carbrand("predict", "--model", tmp_path / "model", photo.with_name("page.jpg")) == 1
    assert "1 photos could not be read" in capsys.readouterr().err
    assert carbrand("explain", "--model", tmp_path / "model", "--output", tmp_path / "seen.png", photo) == 0
    assert capsys.readouterr().out == f"Picture: {tmp_path / 'seen.png'}\n"


@pytest.mark.slow
def test_several_runs_are_compared(tiny_run, drawn_records, tmp_path, capsys):
    runs = [shutil.copytree(tiny_run, tmp_path / name) for name in ("a", "b")]
    given = ["evaluate", "--run", *runs, "--data", drawn_records]
    assert carbrand(*given) == 2
    assert "--run names several runs: give --output, the folder for the comparison" in one_line(capsys)
    assert carbrand(*given, "--run", tmp_path / "none", "--output", tmp_path / "both") == 2
    assert "none: no such folder" in one_line(capsys)
    assert not list((tmp_path / "a").glob("evaluation-*"))
    assert carbrand(*given, "--output", tmp_path / "both") == 0
    output = capsys.readouterr().out
    assert output.endswith(f"Comparison: {tmp_path / 'both' / 'comparison.png'}\n")
    assert output.count("Report: ") == 2
    assert (tmp_path / "a" / "evaluation-test" / "report.html").exists()
    assert "less than the best, points" in output


def test_module_and_command_are_one():
    for command in ([sys.executable, "-m", "carbrand"], [str(pathlib.Path(sys.executable).parent / "carbrand")]):
        assert subprocess.run([*command, "--version"], capture_output=True, text=True).stdout.startswith("carbrand 0.")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("build --input PHOTOS --output FILE/new", "--output=FILE/new: Not a directory. Name a folder."),
        ("build --input PHOTOS --output NEW --cache_dir FILE", "--cache_dir=FILE: is a file. Name a folder."),
        ("build --input LONG --output NEW", "LONG: File name too long. Look at this path."),
        ("verify LONG", "LONG: File name too long. Look at this path."),
        ("train --data RECORDS --run FILE/new", "--run=FILE/new: Not a directory. Name a folder."),
        ("train --data RECORDS --run LONG", "--run=LONG: File name too long. Name a folder."),
        ("train --data RECORDS --run NEW --gin_file FILE", "FILE: is no text in UTF-8 ("),
        ("doctor --data RECORDS --output FILE", "--output=FILE: is a file. Name a folder."),
        ("evaluate --run RUN --data RECORDS --output FILE", "--output=FILE: is a file. Name a folder."),
        ("predict --model MODEL PHOTO --format csv --output FOLDER", "FOLDER: Is a directory. Look at this path."),
    ],
)
def test_a_path_that_cannot_be_is_one_line(
    command, message, drawn_photos, drawn_records, tiny_run, tiny_model, tmp_path, capsys
):
    (tmp_path / "file").write_bytes(b"\xff")
    places = {
        "PHOTOS": drawn_photos,
        "PHOTO": drawn_photos / "arvena" / "0001.jpg",
        "RECORDS": drawn_records,
        "RUN": tiny_run,
        "MODEL": tiny_model,
        "FILE": tmp_path / "file",
        "FOLDER": tmp_path,
        "LONG": tmp_path / ("x" * 300),
        "NEW": tmp_path / "new",
    }

    def placed(text):
        return re.sub("|".join(rf"\b{name}\b" for name in places), lambda name: str(places[name[0]]), text)

    assert carbrand(*map(placed, command.split())) == 2
    assert placed(message) in one_line(capsys)


def test_a_path_that_training_cannot_write_is_one_line(drawn_records, tmp_path, capsys):
    (tmp_path / "config.gin").mkdir()
    assert carbrand("train", "--data", drawn_records, "--run", tmp_path, "--gin_file", "smoke") == 2
    assert f"{tmp_path}/config.gin: Is a directory. Look at this path." in one_line(capsys)


def test_the_path_of_the_last_error_is_named(monkeypatch, capsys):
    def fails(_):
        try:
            raise FileNotFoundError(2, "No such file or directory", "first")
        except FileNotFoundError:
            raise PermissionError(13, "Permission denied", "second")  # noqa: B904

    monkeypatch.setattr(cli, "_verify", fails)
    assert carbrand("verify", "records") == 2
    assert one_line(capsys) == "PermissionError: second: Permission denied. Look at this path."


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def fails(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "_verify", fails)
    assert carbrand("verify", "records") == 2
    assert one_line(capsys) == "OSError: no space left on the disk that is written to. Free some, then run it again."


def test_a_path_of_several_lines_is_told_of_in_one(drawn_photos, tmp_path, capsys):
    shutil.copytree(drawn_photos, tmp_path / "photos")
    (tmp_path / "photos" / "au\ndi\x1b[31m").mkdir()
    assert carbrand("build", "--input", tmp_path / "photos", "--output", tmp_path / "r") == 2
    assert r"photos/au\ndi\x1b[31m: a brand's folder without a file" in one_line(capsys)


def test_names_that_the_terminal_cannot_show_are_escaped(tiny_model, drawn_photos, tmp_path):
    shutil.copy(drawn_photos / "arvena" / "0001.jpg", tmp_path / "é.jpg")
    command = [sys.executable, "-m", "carbrand", "predict", "--model", tiny_model, tmp_path / "é.jpg"]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert r"\xe9.jpg" in done.stdout


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(drawn_records, closed):
    command = f"{sys.executable} -m carbrand verify {drawn_records} {closed}"
    assert subprocess.run(command, shell=True).returncode == 0


def test_a_reader_that_has_enough_ends_a_command_quietly(tiny_model, drawn_photos):
    command = f"{sys.executable} -m carbrand predict --model {tiny_model} {drawn_photos}/arvena | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_dry_run_checks_and_writes_nothing(drawn_records, tmp_path, capsys):
    given = ["train", "--data", drawn_records, "--run", tmp_path / "run", "--dry_run", "--gin_param"]
    assert carbrand(*given, "train.run.batch_size=8") == 0
    assert "nothing that would stop the training was found" in capsys.readouterr().out
    assert carbrand(*given, "hardware.precision='int8'") == 2
    output = capsys.readouterr()
    assert "error: hardware.precision='int8' is not one of" in output.out
    assert "1 error to mend before training, listed above" in output.err
    assert not (tmp_path / "run").exists()


def test_dry_run_counts_the_workers(drawn_records, tmp_path, capfd):
    given = ["train", "--data", drawn_records, "--run", tmp_path / "run", "--dry_run", "--workers", 3, "--gin_param"]
    assert carbrand(*given, "train.run.batch_size=8") == 2
    assert "train.run.batch_size=8 does not divide among 3 replicas" in capfd.readouterr().out


def test_a_checkpoint_that_no_run_has(tiny_run, drawn_records, tmp_path, capsys):
    for stage in ("evaluate", "export"):
        given = ["--run", tiny_run, "--data", drawn_records, "--output", tmp_path / stage, "--checkpoint", "other"]
        assert carbrand(stage, *given) == 2
        assert "--checkpoint='other' is not one of 'latest', 'best'" in one_line(capsys)


def test_a_model_has_no_best_checkpoint(tiny_model, drawn_records, capsys):
    assert carbrand("evaluate", "--model", tiny_model, "--data", drawn_records, "--checkpoint", "best") == 2
    assert "--checkpoint=best: an exported model has one state" in one_line(capsys)
