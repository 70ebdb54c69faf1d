"""The search with a toy training, `toy_training.py`; the slow test at the end runs the real one."""

import collections
import csv
import dataclasses
import json
import math
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys
import time

import gin
import pytest
import sqlalchemy

from carbrand import cli, config
from carbrand.data import manifest
from carbrand.errors import ConfigError
from carbrand.training import search_space, study, trial_process, tune, tune_report

TOY = pathlib.Path(__file__).with_name("toy_training.py")
SPACE = "optimizer.learning_rate = log(1e-4, 1)\nmodel.dropout = uniform(0, 0.9)\n"


@pytest.fixture(autouse=True)
def poll_often(monkeypatch):
    monkeypatch.setattr(trial_process, "POLL_S", 0.02)
    monkeypatch.setattr(tune, "_WAIT_S", 0.05)


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk():
    """For speed: SQLite hands its writes to the system only."""
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", write_lazily)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", write_lazily)


def write_lazily(connection, _):
    connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    """For speed: the first picture imports for two seconds."""
    if request.function is not test_files_of_a_study:
        monkeypatch.setattr(tune, "_draw", lambda *_: None)


@pytest.fixture
def search(drawn_records, tmp_path):
    """A function that runs a search with the toy in `tmp_path / "study"`."""

    def run(space=SPACE, study="study", epoch_s=0.0, data=drawn_records, **options):
        (tmp_path / "toy.space").write_text(space)

        def command(folder, bindings):
            log = str(tmp_path / "log.jsonl")
            return [sys.executable, "-S", "-E", str(TOY), str(folder), log, str(epoch_s), *bindings]

        options = {"trials": 3, "pruner": "none", "command": command, **options}
        return tune.run(data, tmp_path / study, tmp_path / "toy.space", **options)

    return run


def events(tmp_path, kind):
    rows = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == kind]


def test_search_finds_a_planted_optimum(search, tmp_path):
    result = search(trials=20)
    best = result.best.values
    assert abs(math.log10(best["optimizer.learning_rate"]) + 2) < 0.5
    assert abs(best["model.dropout"] - 0.3) < 0.15
    assert result.best.loss == min(row.loss for row in result.trials)
    assert [row.state for row in result.trials] == ["complete"] * 20


def test_progress_and_improvements_are_told(search, caplog):
    caplog.set_level("INFO", "carbrand")
    best = search(trials=3).best
    assert re.search(r"trial 0 \(1 of 3\): optimizer.learning_rate = [\d.e-]+, model.dropout = 0.\d+\n", caplog.text)
    assert re.search(r"trial 0: loss [\d.]+, accuracy [\d.]+%\n.*best so far: trial 0, loss [\d.]+, acc", caplog.text)
    assert f"best so far: trial {best.number}, loss {best.loss:.4g}" in caplog.text


def test_files_of_a_study(search, tmp_path):
    search(gin_files=["probe"], gin_params=["train.run.epochs = 9"], trials=5)
    from carbrand.training import train  # noqa: F401  so that gin knows its names

    config.parse([str(tmp_path / "study" / "best.gin")])
    with (tmp_path / "study" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = min(rows, key=lambda row: float(row["loss"]))
    assert config.value_of("optimizer.learning_rate") == float(best["optimizer.learning_rate"])
    assert config.value_of("model.dropout") == float(best["model.dropout"])
    assert config.value_of("train.run.epochs") == 9
    assert config.value_of("train.run.batch_size") == 64  # the recipe's
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert (tmp_path / "study" / "study.png").read_bytes().startswith(b"\x89PNG")
    gin.clear_config()


def test_pruning_ends_bad_trials_and_not_the_best(search, tmp_path):
    result = search(trials=12, pruner="asha", epoch_s=0.1)
    states = collections.Counter(row.state for row in result.trials)
    assert states["pruned"] >= 4
    assert all(row.validations < 4 for row in result.trials if row.state == "pruned")
    complete = [row.loss for row in result.trials if row.state == "complete"]
    assert result.best.loss == min(complete)
    assert len(events(tmp_path, "end")) == len(complete)


def test_only_the_best_trial_keeps_its_checkpoints(search, tmp_path, monkeypatch):
    original = tune._make_folder

    def with_checkpoints(*arguments):
        folder = original(*arguments)
        (folder / "checkpoints").mkdir()
        return folder

    monkeypatch.setattr(tune, "_make_folder", with_checkpoints)
    best = search().best.number
    kept = [path.parent.name for path in (tmp_path / "study" / "trials").glob("*/checkpoints")]
    assert kept == [f"{best:05d}"]


def test_a_failing_trial_does_not_end_the_search(search):
    result = search(SPACE.replace("0.9", "1.4"), trials=10)
    failed = [row for row in result.trials if row.state == "failed"]
    assert 0 < len(failed) < 10
    assert {row.reason for row in failed} == {"ConfigError: model.dropout is too much."}


def test_trials_that_all_fail_alike_end_the_search(search):
    with pytest.raises(ConfigError, match="all 3 trials failed alike; the last one with ConfigError: model.dropout is"):
        search(SPACE.replace("uniform(0, 0.9)", "uniform(1, 2)"), trials=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"space": SPACE.replace("0.9", "0.8")},
            r"with the space model.dropout = uniform\(0.0, 0.9\), now it is model.dropout = uniform\(0.0, 0.8\). Go on",
        ),
        ({"gin_params": ["train.run.seed = 1"]}, "with the recipe train.run.seed = 0, now it is train.run.seed = 1"),
        ({"metric": "accuracy"}, "with the metric loss, now it is accuracy"),
        ({"pruner": "asha"}, "with the pruner none, now it is asha"),
        ({"seed": 1}, "with the seed 0, now it is 1"),
    ],
)
def test_a_study_of_something_else_is_refused(search, change, message):
    search(gin_params=["train.run.seed = 0"], trials=1)
    with pytest.raises(ConfigError, match=message):
        search(**{"gin_params": ["train.run.seed = 0"], "trials": 2, **change})


def test_a_study_of_other_data_is_refused(search, drawn_records, monkeypatch):
    search(trials=1)
    ours = manifest.load(drawn_records)
    monkeypatch.setattr(tune.manifest, "load", lambda _: dataclasses.replace(ours, fingerprint="of others"))
    with pytest.raises(ConfigError, match=f"with the data {ours.fingerprint}, now it is of others. Go on"):
        search(trials=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "--trials=0: give a whole number at least 1"),
        ({"seed": -1}, "--seed=-1: give"),
        ({"pruner": "median"}, "--pruner='median' is not one of 'asha', 'hyperband', 'none'"),
        ({"metric": "f1"}, "--metric='f1' is not one of 'loss', 'accuracy'"),
        ({"study": "toy.space"}, "--study=.*toy.space: is a file. Name a folder"),
        ({"storage": "postgres//u:secret@h/d"}, "no such database can be opened"),
        ({"storage": "nosuch://u:secret@h/d"}, r"--storage=nosuch://u:\*\*\*@h/d: no such database can be opened"),
    ],
)
def test_bad_arguments_raise(search, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        search(**change)
    assert "nosuch" not in str(caught.value) or "secret" not in str(caught.value)


def test_a_start_that_failed_does_not_decide_on_the_metric(search, tmp_path):
    (tmp_path / "study").mkdir()
    study.open_study(tmp_path / "study", None, metric="loss", seed=0)  # a misspelt name ends it here
    best = search(metric="accuracy").best
    assert best.accuracy == max(row.accuracy for row in search(metric="accuracy").trials)
    opened, _ = study.open_study(tmp_path / "study", None, metric="accuracy", seed=0)
    assert opened.direction == study.METRICS["accuracy"]
    with pytest.raises(ConfigError, match="with the metric accuracy, now it is loss"):
        study.open_study(tmp_path / "study", None, metric="loss", seed=0)


def test_trials_without_their_database_are_left_alone(search, tmp_path):
    search()
    (tmp_path / "study" / study.DATABASE).unlink()
    with pytest.raises(ConfigError, match="trials that its database knows nothing of. Restore study.db, or give anoth"):
        search()


def test_a_picture_of_trials_without_a_value_is_drawn(tmp_path):
    parameters = [search_space.Parameter("optimizer.learning_rate", "log", (1e-4, 1.0), 1)]
    row = tune_report.TrialRow(0, "failed", None, None, 0, 0.0, {"optimizer.learning_rate": 0.1}, "killed")
    tune_report.draw(tmp_path / "study.png", [row], parameters, {}, "loss")
    assert (tmp_path / "study.png").exists()


def test_values_do_not_depend_on_interruptions(search, tmp_path):
    whole = search(trials=4)
    for trials in (1, 4):
        parts = search(trials=trials, study="other")
    assert [row.values for row in parts.trials] == [row.values for row in whole.trials]


def test_accuracy_is_maximised_and_two_tuners_share_a_database(search, tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first = search(study="a/study", storage=url, metric="accuracy", trials=3)
    second = search(study="b/study", storage=url, metric="accuracy", trials=6)
    assert second.trials[:3] == first.trials
    assert second.best.accuracy == max(row.accuracy for row in second.trials)
    assert len(events(tmp_path, "start")) == 6


def test_a_trial_of_a_tuner_not_heard_of_is_trained_again(search, tmp_path, monkeypatch):
    def lose_the_tuner(*_, **__):
        raise SystemExit

    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with monkeypatch.context() as patch:
        patch.setattr(tune.trial_process, "run", lose_the_tuner)
        patch.setattr(study, "take_back", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            search(study="a/study", storage=url)
    with sqlite3.connect(tmp_path / "shared.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    result = search(study="b/study", storage=url, trials=3)
    assert [row.number for row in result.trials] == [0, 2, 3]  # the lost one's second try is Optuna's number 1
    assert [row["folder"] for row in events(tmp_path, "start")] == ["00000", "00002", "00003"]


TUNER = """
import json, sys
from carbrand.training import trial_process, tune
trial_process.POLL_S = 0.02
toy, data, study, space, log, trials = sys.argv[1:]
tune._draw = lambda *_: None
command = lambda folder, bindings: [sys.executable, "-S", "-E", toy, str(folder), log, "0.3", *bindings]
tune.run(data, study, space, trials=int(trials), pruner="none", command=command)
"""


def start_tuner(drawn_records, tmp_path, trials):
    (tmp_path / "toy.space").write_text(SPACE)
    paths = [TOY, drawn_records, tmp_path / "study", tmp_path / "toy.space", tmp_path / "log.jsonl"]
    command = [sys.executable, "-c", TUNER, *map(str, paths), str(trials)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_half_a_trial(tmp_path, number):
    checkpoint = tmp_path / "study" / "trials" / f"{number:05d}" / "checkpoint.json"
    deadline = time.monotonic() + 30
    while not checkpoint.exists() or len(json.loads(checkpoint.read_text())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGINT))]
)
def test_a_stopped_search_goes_on_with_the_same_command(drawn_records, tmp_path, number):
    tuner = start_tuner(drawn_records, tmp_path, trials=3)
    wait_for_half_a_trial(tmp_path, 1)
    tuner.send_signal(number)
    assert tuner.wait(30) == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    again = start_tuner(drawn_records, tmp_path, trials=3)
    assert again.wait(60) == 0, again.stderr.read()
    starts = [(row["folder"], row["done"] > 0) for row in events(tmp_path, "start")]
    assert starts == [("00000", False), ("00001", False), ("00001", True), ("00002", False)]
    assert [row["folder"] for row in events(tmp_path, "end")] == ["00000", "00001", "00002"]
    first, second = [row["bindings"] for row in events(tmp_path, "start") if row["folder"] == "00001"]
    assert first == second
    with (tmp_path / "study" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["state"], row["validations"]) for row in rows] == [
        (str(trial), "complete", "4") for trial in range(3)
    ]


def test_trials_of_a_live_tuner_are_left_to_it(search, drawn_records, tmp_path):
    other = start_tuner(drawn_records, tmp_path, trials=2)
    wait_for_half_a_trial(tmp_path, 0)
    search(trials=2)
    assert other.wait(30) == 0, other.stderr.read()
    assert {row["folder"] for row in events(tmp_path, "start")} == {"00000", "00001"}
    assert len(events(tmp_path, "start")) == 2


def test_without_optuna_the_extra_is_named(drawn_records, tmp_path):
    code = """
import sys
sys.modules["optuna"] = None
from carbrand import cli
cli.main()
"""
    arguments = ["tune", "--data", drawn_records, "--study", tmp_path, "--space", "probe", "--trials", "1"]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr == "ConfigError: `carbrand tune` needs Optuna. Run: pip install 'carbrand[tune]'\n"


@pytest.mark.slow
def test_real_trainings(drawn_records, tmp_path, capfd):
    (tmp_path / "small.space").write_text(
        "optimizer.learning_rate = log(1e-3, 1)\nmodel.freeze_until = choice('none', 'conv5')\n"
    )
    arguments = ["tune", "--data", str(drawn_records), "--study", str(tmp_path / "study")]
    arguments += ["--space", str(tmp_path / "small.space"), "--gin_file", "smoke", "--trials", "2"]
    arguments += ["--pruner", "none", "--gin_param", "weights.path = 'random'"]
    assert cli._run(cli._parse(["carbrand", *arguments])) == 0
    output = capfd.readouterr()
    assert re.search(r"2 complete, 0 pruned, 0 failed\nBest: .*best.gin\n$", output.out)
    run = json.loads((tmp_path / "study" / "trials" / "00000" / "run.json").read_text())
    assert run["config"]["optimizer"]["learning_rate"] == 0.01  # the first trial is the recipe
    with (tmp_path / "study" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["loss"]) == run["validation_loss"]
    misspelt = tmp_path / "misspelt.space"
    misspelt.write_text("optimizer.lerning_rate = log(1e-3, 1)\n")
    arguments[arguments.index(str(tmp_path / "small.space"))] = str(misspelt)
    arguments[arguments.index(str(tmp_path / "study"))] = str(tmp_path / "other")
    assert cli._run(cli._parse(["carbrand", *arguments])) == 2
    assert re.search(r"misspelt.space, line 1: .* Did you mean optimizer.learning_rate\?", capfd.readouterr().err)
    assert not (tmp_path / "other" / "trials").exists()
