"""A search over gin bindings: each trial is a training in a process of its own, followed by its validation rows.

Optuna proposes values and says which trials to give up. A trial whose tuner was stopped or killed is trained on from
its own checkpoint, in its own folder. Needs no TensorFlow in this process.
"""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from carbrand import checks, config, files
from carbrand.data import manifest
from carbrand.errors import ConfigError
from carbrand.training import search_check, search_space, signals, study, trial_process, tune_report
from carbrand.training.search_space import Parameter
from carbrand.training.study import METRICS, optuna
from carbrand.training.tune_report import TrialRow

TRIALS = "trials"
RECIPE = "recipe.gin"
_LOCK = ".lock"
_FEATURES = "features"  # as train.run calls its folder for them
_WAIT_S = 2.0
_DRAW_EVERY_S = 60.0
_NUM_ALIKE = 3

Command = Callable[[pathlib.Path, list[str]], list[str]]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """A study at its end: all trials that ended, in the order of their numbers, and the best one."""

    metric: str
    trials: tuple[TrialRow, ...]
    best: TrialRow


@dataclasses.dataclass
class _Tuner:
    study: optuna.Study
    storage: optuna.storages.RDBStorage
    session: str
    folder: pathlib.Path
    parameters: tuple[Parameter, ...]
    metric: str
    recipe: str
    command: Command
    stop_signal: int | None = None

    def note_signal(self, number: int) -> None:
        """Asks for an end after what is under way."""
        self.stop_signal = number


class _TrialFailedError(Exception):
    """The trial's process ended with an error."""


class _TakenOverError(BaseException):
    """Another tuner took this trial for dead. Not an Exception, so that Optuna does not try to end the trial."""


def run(
    data: str | os.PathLike[str],
    study_dir: str | os.PathLike[str],
    space: str | os.PathLike[str],
    *,
    trials: int,
    gin_files: Sequence[str] = (),
    gin_params: Sequence[str] = (),
    metric: str = "loss",
    pruner: str = "asha",
    seed: int = 0,
    storage: str | None = None,
    command: Command | None = None,
) -> TuneResult:
    """Searches until the study has `trials` trials in all, or goes on with a study that was stopped or killed.

    A trial's value is its last validation, not its best: see `checkpoint.load_run`. The test split is never looked at.
    Where the space holds the recipe's own values, they are the first trial.

    Args:
      data: A records folder.
      study_dir: Gets `study.db`, `recipe.gin`, a run per trial in `trials/`, `best.gin`, `trials.csv` and `study.png`.
        Only the best trial keeps its checkpoints. Cached features of frozen layers are shared by the trials.
      space: A search space (see `search_space`): a path, or the name of one of ours.
      trials: Trials to have in all, from this and other tuners of the study: completed, pruned or failed.
      gin_files: The recipe, as for `carbrand train`.
      gin_params: Bindings over the recipe's.
      metric: "loss" or "accuracy" on the validation split. With 100 photos the accuracy knows steps of 1 % only, and
        many trials tie; the loss tells them apart.
      pruner: "asha", "hyperband" or "none". Trials are compared after equally many epochs: with `train.run.epochs` in
        the space, short trials win early, so take "none".
      seed: Of the values that are drawn. The n-th trial does not depend on how often the study was interrupted.
      storage: Database URL, for several tuners; each has a `study_dir` of the same name. By default a file there.
      command: (folder of the trial, its bindings) -> program and arguments that train there, write `metrics.jsonl`
        and end with 0. By default `carbrand train`, whose names are checked first.

    Raises:
      ConfigError: Arguments that cannot work, a study that was started with others, or no trial that works.
      DataError: `data` is no complete records folder.
      SystemExit: SIGTERM (143) or SIGINT (130) came; the trial is saved, and goes on when called again.
    """
    checks.number("--trials", trials, at_least=1, whole=True)
    checks.number("--seed", seed, at_least=0, whole=True)
    checks.choice("--pruner", pruner, study.PRUNERS)
    checks.choice("--metric", metric, tuple(METRICS))
    space_path = config.find_space(os.fspath(space))
    parameters = search_space.load(space_path)
    dataset = manifest.load(data)
    folder = pathlib.Path(study_dir)
    checks.folder("--study", folder)
    recipe = _recipe(gin_files, gin_params)
    made_from = {
        "data": [dataset.fingerprint],
        "recipe": _settings(recipe),
        "space": [str(parameter) for parameter in parameters],
        "metric": [metric],
        "pruner": [pruner],
        "seed": [str(seed)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with files.one_at_a_time(folder / _LOCK):
        optuna_study, database = study.open_study(folder, storage, metric=metric, seed=seed)
        if "made_from" not in optuna_study.user_attrs:
            if any((folder / TRIALS).glob("*")):
                raise ConfigError(
                    f"{folder}: holds trials that its database knows nothing of. Restore {study.DATABASE}, or give "
                    "another --study."
                )
            if command is None:
                bindings = {f"{space_path}, line {p.line}": p.binding(p.values[0]) for p in parameters}
                values = search_check.in_own_process(gin_files, gin_params, bindings)
                _look_at_recipe(optuna_study, values, parameters)
            optuna_study.set_user_attr("made_from", made_from)
        study.check_same(folder, optuna_study.user_attrs["made_from"], made_from)
        optuna_study.pruner = study.make_pruner(pruner, optuna_study.user_attrs.get("epochs", 0))
        files.write_text(folder / RECIPE, recipe)
    command = command or _train_command(data, folder / RECIPE)
    with study.session(folder) as session:
        tuner = _Tuner(optuna_study, database, session, folder, parameters, metric, recipe, command)
        try:
            with signals.noted(tuner.note_signal):
                _search(tuner, trials)
        finally:
            study.take_back(optuna_study, database, folder, own_session=session)
            rows = study.rows(optuna_study)
            _report(tuner, rows)
            _draw(tuner, rows)
    best = tune_report.best(rows, metric)
    if best is None:
        raise ConfigError(f"{folder}: none of {len(rows)} trials was completed. See {folder / tune_report.CSV}.")
    return TuneResult(metric, tuple(rows), best)


def _search(tuner: _Tuner, trials: int) -> None:
    is_waiting, drawn_at = False, time.monotonic()
    while tuner.stop_signal is None:
        with files.one_at_a_time(tuner.folder / _LOCK), study.quiet():
            study.take_back(tuner.study, tuner.storage, tuner.folder)
            optuna.storages.fail_stale_trials(tuner.study)
        # Running ones first: a trial of another tuner that ends in between is then counted twice, rather than never.
        num_running = len(tuner.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]))
        num_ended = len(study.rows(tuner.study))
        if num_ended >= trials:
            return
        if num_ended + num_running < trials:
            _run_trial(tuner, num_ended + 1, trials)
            rows = study.rows(tuner.study)
            _report(tuner, rows)
            _check_not_all_failed_alike(tuner.folder, rows)
            if time.monotonic() - drawn_at >= _DRAW_EVERY_S:
                _draw(tuner, rows)
                drawn_at = time.monotonic()
        else:
            if not is_waiting:
                log.info("Waiting for trials of other tuners; a dead one's are taken after %d s.", study.GRACE_S)
            is_waiting = True
            time.sleep(_WAIT_S)
    log.warning("Stopped by signal %d; the same command goes on from here.", tuner.stop_signal)
    raise SystemExit(128 + tuner.stop_signal)


def _run_trial(tuner: _Tuner, place: int, trials: int) -> None:
    """Asks for one trial and trains it; whatever becomes of it stands in the study then."""
    try:
        with study.quiet():
            tuner.study.optimize(lambda t: _objective(tuner, t, place, trials), n_trials=1, catch=(_TrialFailedError,))
    except _TakenOverError:
        log.warning(
            "Another tuner has taken over this trial, as nothing was heard of this one for %d s.", study.GRACE_S
        )


def _objective(tuner: _Tuner, trial: optuna.Trial, place: int, trials: int) -> float:
    try:
        return _train(tuner, trial, place, trials)
    except optuna.exceptions.UpdateFinishedTrialError as error:
        raise _TakenOverError from error


def _train(tuner: _Tuner, trial: optuna.Trial, place: int, trials: int) -> float:
    trial.set_user_attr("session", tuner.session)
    number = trial.user_attrs.get("number", trial.number)  # one that was a dead tuner's keeps its number and folder
    trial.set_user_attr("number", number)
    bindings = [parameter.binding(_suggest(trial, parameter)) for parameter in tuner.parameters]
    folder = _make_folder(tuner.folder, number)
    num_reported = len(tuner.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    log.info("trial %d (%d of %d): %s", number, place, trials, ", ".join(bindings))

    def goes_on(validation: int, row: dict[str, Any]) -> bool:
        if validation <= num_reported:  # it was judged before the interruption
            return True
        trial.report(_number(row[tuner.metric]), validation)
        return not trial.should_prune()

    ended = trial_process.run(
        tuner.command(folder, bindings),
        folder,
        on_validation=goes_on,
        is_interrupted=lambda: tuner.stop_signal is not None,
    )
    rows = trial_process.validations(folder)
    validation = {name: row[name] for row in rows[-1:] for name in METRICS}
    trial.set_user_attr("validation", validation)
    if ended.exit_code == 0:
        return _last_value(trial, tuner.metric)
    if tuner.stop_signal is not None:
        log.warning("Stopped by signal %d; trial %d goes on with the same command.", tuner.stop_signal, number)
        raise SystemExit(128 + tuner.stop_signal)  # Optuna leaves the trial as running; `run` puts it into the queue
    if ended.was_stopped:
        log.info("trial %d: pruned after %d validations: %s", number, len(rows), tune_report.figures(**validation))
        raise optuna.TrialPruned
    raise _failed(trial, trial_process.reason(folder / trial_process.OUTPUT, ended.exit_code))


def _last_value(trial: optuna.Trial, metric: str) -> float:
    validation = trial.user_attrs["validation"]
    value = _number(validation.get(metric))
    if not math.isfinite(value):
        raise _failed(trial, f"the validation {metric} is {validation.get(metric)}")
    log.info("trial %d: %s", trial.user_attrs["number"], tune_report.figures(**validation))
    return value


def _failed(trial: optuna.Trial, reason: str) -> _TrialFailedError:
    trial.set_user_attr("reason", reason)
    log.info("trial %d: failed: %s", trial.user_attrs["number"], reason)
    return _TrialFailedError(reason)


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # a figure that is not finite stands as null in metrics.jsonl


def _make_folder(study_folder: pathlib.Path, number: int) -> pathlib.Path:
    folder = study_folder / TRIALS / f"{number:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    # Features of frozen layers are computed once for all trials: their file's name holds all that they depend on.
    (study_folder / _FEATURES).mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / _FEATURES).symlink_to(pathlib.Path("..", "..", _FEATURES), target_is_directory=True)
    return folder


def _suggest(trial: optuna.Trial, parameter: Parameter) -> Any:
    if parameter.kind == "choice":
        return trial.suggest_categorical(parameter.name, parameter.values)
    low, high = parameter.values
    if parameter.kind == "int":
        return trial.suggest_int(parameter.name, low, high)
    return trial.suggest_float(parameter.name, low, high, log=parameter.kind == "log")


def _train_command(data: str | os.PathLike[str], recipe: pathlib.Path) -> Command:
    def command(folder: pathlib.Path, bindings: list[str]) -> list[str]:
        files_and_folders = ["--data", os.fspath(data), "--run", str(folder), "--gin_file", str(recipe)]
        params = [part for binding in bindings for part in ("--gin_param", binding)]
        return [sys.executable, "-m", "carbrand", "train", *files_and_folders, *params]

    return command


def _recipe(gin_files: Sequence[str], gin_params: Sequence[str]) -> str:
    """One gin text that binds what the files and the parameters bind."""
    parts = [config.read_recipe(file) for file in gin_files] + list(gin_params)
    return "".join(part.rstrip("\n") + "\n" for part in parts)


def _settings(recipe: str) -> list[str]:
    return [line.strip() for line in recipe.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _look_at_recipe(optuna_study: optuna.Study, recipe_values: dict[str, str], parameters: Sequence[Parameter]) -> None:
    """Keeps how long the recipe trains, and makes its own values the first trial where the space holds them all."""
    values = {name: search_space.literal(text) for name, text in recipe_values.items()}
    epochs = [f"train.run.{name}" for name in ("epochs", "head_epochs")]
    for name in epochs:
        checks.number(name, values[name], at_least=0)
    optuna_study.set_user_attr("epochs", sum(values[name] for name in epochs))
    found = {parameter.name: parameter.find(values[parameter.name]) for parameter in parameters}
    outside = [f"{name} = {recipe_values[name]}" for name, value in found.items() if value is None]
    if outside:
        log.info("The recipe's own values are no trial, as the space does not hold %s.", ", ".join(outside))
    else:
        optuna_study.enqueue_trial(found, skip_if_exists=True)


def _report(tuner: _Tuner, rows: list[TrialRow]) -> None:
    """Brings the files of the study up to date, and removes checkpoints of all trials but the best."""
    files.write_text(tuner.folder / tune_report.CSV, tune_report.csv_text(rows))
    best = tune_report.best(rows, tuner.metric)
    if best is not None:
        bindings = [parameter.binding(best.values[parameter.name]) for parameter in tuner.parameters]
        text = tune_report.best_gin(tuner.recipe, best, bindings)
        path = tuner.folder / tune_report.BEST
        if not path.exists() or path.read_text() != text:
            files.write_text(path, text)
            log.info("best so far: trial %d, %s", best.number, tune_report.figures(best.loss, best.accuracy))
    for row in rows:
        checkpoints = tuner.folder / TRIALS / f"{row.number:05d}" / "checkpoints"
        if row != best and checkpoints.exists():
            shutil.rmtree(checkpoints)


def _draw(tuner: _Tuner, rows: list[TrialRow]) -> None:
    if not rows:
        return
    complete = [row for row in rows if row.state == "complete"]
    importances: dict[str, float] = {}
    if len(complete) >= 4 and len({row.value(tuner.metric) for row in complete}) > 1:  # fewer say nothing
        with study.quiet():
            importances = optuna.importance.get_param_importances(tuner.study)
    tune_report.draw(tuner.folder / tune_report.PICTURE, rows, tuner.parameters, importances, tuner.metric)


def _check_not_all_failed_alike(folder: pathlib.Path, rows: list[TrialRow]) -> None:
    kinds = {re.sub(r"[\d.e+-]+", "#", row.reason) for row in rows}
    if len(rows) >= _NUM_ALIKE and len(kinds) == 1 and all(row.state == "failed" for row in rows):
        raise ConfigError(f"{folder}: all {len(rows)} trials failed alike; the last one with {rows[-1].reason}")
