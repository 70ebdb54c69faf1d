"""The database of a search: opened or made, shared by tuners that come and go, and its trials as rows.

Optuna keeps it. A tuner that dies leaves a trial behind as running. One of this folder is known by a lock file that is
free, and goes back into the queue as it is; one of another machine by a heartbeat that has stopped, and is tried anew.
"""

import contextlib
import fcntl
import functools
import hashlib
import pathlib
import re
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

from carbrand.errors import ConfigError
from carbrand.training.tune_report import TrialRow

try:
    import optuna
except ModuleNotFoundError as error:
    raise ConfigError("`carbrand tune` needs Optuna. Run: pip install 'carbrand[tune]'") from error

import sqlalchemy.exc
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

DATABASE = "study.db"
PRUNERS = ("asha", "hyperband", "none")
METRICS = {"loss": StudyDirection.MINIMIZE, "accuracy": StudyDirection.MAXIMIZE}
# ASHA looks at a trial after this share of the recipe's epochs (a guess), then each time after so many times more, and
# lets one in so many go on: as Hyperband does by default (Li et al. 2018, arXiv:1603.06560, section 3.6).
_FIRST_RUNG_SHARE = 0.1
_REDUCTION = 3
# A tuner of another machine that was not heard of for so long is dead.
GRACE_S = 120
_HEARTBEAT_S = 15
_TUNERS = ".tuners"


def open_study(folder: pathlib.Path, url: str | None, *, metric: str, seed: int) -> tuple[optuna.Study, RDBStorage]:
    """The study in the database at `url`, or in `folder`; makes it if it is not there.

    Raises:
      ConfigError: There is no such database, or the study is about another metric.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # we tell of trials ourselves
    storage = _open_storage(folder, url)
    name = "study" if url is None else folder.resolve().name
    make = functools.partial(optuna.create_study, storage=storage, study_name=name, direction=METRICS[metric])
    study = make(sampler=_TpeByNumber(seed), load_if_exists=True)
    if study.direction != METRICS[metric]:
        if study.get_trials(deepcopy=False):
            (theirs,) = (name for name, direction in METRICS.items() if direction == study.direction)
            raise ConfigError(
                f"{folder}: the study was started with the metric {theirs}, now it is {metric}. Go on with the same, "
                "or give another --study."
            )
        optuna.delete_study(study_name=name, storage=storage)  # of a start that failed
        study = make(sampler=_TpeByNumber(seed))
    return study, storage


def check_same(folder: pathlib.Path, theirs: dict[str, list[str]], ours: dict[str, list[str]]) -> None:
    """Raises ConfigError if a study that began with `theirs` is to go on with other things; name -> lines of each."""
    for name, values in ours.items():
        if theirs.get(name, values) != values:  # an older carbrand did not note all of them
            old = [value for value in theirs[name] if value not in values] or theirs[name]
            new = [value for value in values if value not in theirs[name]] or values
            raise ConfigError(
                f"{folder}: the study was started with the {name} {'; '.join(old)}, now it is {'; '.join(new)}. "
                "Go on with the same, or give another --study."
            )


def make_pruner(name: str, epochs: float) -> optuna.pruners.BasePruner:
    """One of `PRUNERS`, for trials of about so many epochs, which have a validation each; 0: not known."""
    first = max(1, round(_FIRST_RUNG_SHARE * epochs))
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=_REDUCTION)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first, reduction_factor=_REDUCTION)
    return optuna.pruners.NopPruner()


@contextlib.contextmanager
def session(folder: pathlib.Path) -> Iterator[str]:
    """A name for this tuner, and a file of that name in `folder` that is locked while it lives."""
    (folder / _TUNERS).mkdir(exist_ok=True)
    name = uuid.uuid4().hex[:12]
    path = folder / _TUNERS / name
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield name
        finally:
            path.unlink()


def take_back(
    study: optuna.Study, storage: RDBStorage, folder: pathlib.Path, *, own_session: str | None = None
) -> None:
    """Puts running trials of dead tuners of `folder`, or of `own_session`, into the queue as they are."""
    study_id = storage.get_study_id_from_name(study.study_name)
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        owner = trial.user_attrs.get("session")
        if owner and (owner == own_session or _is_dead(folder, owner)):
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # its heartbeat was found missing
                storage.set_trial_user_attr(trial_id, "session", "")
                storage.set_trial_state_values(trial_id, TrialState.WAITING)


def rows(study: optuna.Study) -> list[TrialRow]:
    """The trials that ended, in order of their numbers. One that failed with its tuner is not among them."""
    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    trials = study.get_trials(deepcopy=False, states=list(names))
    ended = [
        TrialRow(
            number=trial.user_attrs["number"],
            state=names[trial.state],
            loss=trial.user_attrs.get("validation", {}).get("loss"),
            accuracy=trial.user_attrs.get("validation", {}).get("accuracy"),
            validations=len(trial.intermediate_values),
            seconds=round(trial.duration.total_seconds(), 1) if trial.duration else None,
            values=dict(trial.params),
            reason=trial.user_attrs.get("reason", ""),
        )
        for trial in trials
        if trial.state != TrialState.FAIL or "reason" in trial.user_attrs
    ]
    return sorted(ended, key=lambda row: row.number)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that heartbeats, and what follows from them, are experimental in Optuna."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _open_storage(folder: pathlib.Path, url: str | None) -> RDBStorage:
    is_file = url is None or url.startswith("sqlite")
    try:
        with quiet():
            return RDBStorage(
                url or f"sqlite:///{(folder / DATABASE).resolve()}",
                engine_kwargs={"connect_args": {"timeout": 60}} if is_file else None,
                heartbeat_interval=_HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=_retry,
            )
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        shown = re.sub(r"(://[^:@/]*):[^@/]*@", r"\1:***@", url or str(folder / DATABASE))
        cause = str(error).splitlines()[0]
        raise ConfigError(
            f"--storage={shown}: no such database can be opened ({type(error).__name__}: {cause}). Give, for example, "
            "sqlite:////shared/study.db or postgresql://user:password@host/database, and install its driver."
        ) from error


def _retry(study: optuna.Study, trial: FrozenTrial) -> None:
    trial.user_attrs.pop("session", None)
    with quiet():
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, trial)


class _TpeByNumber(BaseSampler):
    """TPE with a seed for each trial: one seed for all would draw the first values again after each restart."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tpe = TPESampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        digest = hashlib.sha256(f"{self._seed}:{trial.number}".encode()).digest()
        self._tpe = TPESampler(seed=int.from_bytes(digest[:4]))
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(self, *arguments: Any) -> dict[str, Any]:
        return self._tpe.infer_relative_search_space(*arguments)

    def sample_relative(self, *arguments: Any) -> dict[str, Any]:
        return self._tpe.sample_relative(*arguments)

    def sample_independent(self, *arguments: Any) -> Any:
        return self._tpe.sample_independent(*arguments)

    def after_trial(self, *arguments: Any) -> None:
        self._tpe.after_trial(*arguments)


def _is_dead(folder: pathlib.Path, session: str) -> bool:
    """Whether a tuner of this folder has ended without a word; of one of another machine we do not know."""
    path = folder / _TUNERS / session
    if not path.exists():
        return False
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
