"""The settings that gin's bindings ask for, with everything that is wrong in them, not only the first of it."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import gin

from carbrand.errors import ConfigError
from carbrand.training.checkpoint import Keeping
from carbrand.training.progress import check_profile
from carbrand.training.settings import Schedule, Settings, check_kind
from carbrand.training.weights import Weights


@dataclasses.dataclass(frozen=True)
class Draft:
    """Settings that may not work.

    Attributes:
      settings: With a default in place of each wrong value, so that the others can be looked at.
      keeping: In the same way.
      errors: What is wrong, one line each.
      unsound: Fields of `Settings` of which a value was replaced, and "keeping".
    """

    settings: Settings
    keeping: Keeping
    errors: tuple[str, ...]
    unsound: frozenset[str]


def from_gin(run: Callable[..., Any]) -> Draft:
    """The settings with which `run`, which is `train.run`, would train now."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(run).parameters.items()}
    given = gin.get_bindings(run)
    schedule_names = [field.name for field in dataclasses.fields(Schedule)]
    groups, wrong = {}, {}
    for field in dataclasses.fields(Settings):
        name, kind = field.name, field.type
        assert isinstance(kind, type)
        if kind is Schedule:
            values = {knob: given.get(knob, defaults[knob]) for knob in schedule_names}
            groups[name], wrong[name] = make(kind, values, {knob: defaults[knob] for knob in schedule_names})
            continue
        groups[name], wrong[name] = make(kind, {}, {f.name: f.default for f in dataclasses.fields(kind)})
        if given.get(name) is not None:  # train.run.model = @model()
            try:
                check_kind(field, given[name])
                groups[name], wrong[name] = given[name], []
            except ConfigError as error:
                wrong[name].append(_first_line(error))
    names = ("checkpoint_every_s", "keep_last", "keep_best")
    values = {knob: given.get(knob, defaults[knob]) for knob in names}
    keeping, wrong["keeping"] = make(_keeping, values, {knob: defaults[knob] for knob in names})
    unsound = frozenset(name for name, errors in wrong.items() if errors)
    settings, mismatch = _assemble(groups)
    errors = [error for errors in wrong.values() for error in errors]
    if not unsound & {"model", "weights", "schedule"}:  # else it may come from the defaults
        errors += mismatch
    try:
        check_profile(given.get("profile_steps"))
    except ConfigError as error:
        errors.append(_first_line(error))
    return Draft(settings, keeping, tuple(dict.fromkeys(errors)), unsound)


def _keeping(checkpoint_every_s: float, keep_last: int, keep_best: int) -> Keeping:
    """By the names that gin and its errors have."""
    return Keeping(checkpoint_every_s, keep_last, keep_best)


def make(kind: Callable[..., Any], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """A `kind` from `values` and gin's bindings, wrong ones replaced by `defaults`, and what was wrong with each."""
    replaced: dict[str, Any] = {}
    errors: list[str] = []
    while True:
        try:
            return kind(**{**values, **replaced}), errors
        except ConfigError as error:
            errors.append(_first_line(error))
        # Errors name the knob first: "augment.flip=1 is neither True nor False."
        knob = re.match(r"[\w.]+\.(\w+)=", errors[-1])
        if knob is None or knob[1] in replaced or knob[1] not in defaults:
            return kind(**defaults), errors
        replaced[knob[1]] = defaults[knob[1]]


def _assemble(groups: dict[str, Any]) -> tuple[Settings, list[str]]:
    try:
        return Settings(**groups), []
    except ConfigError as error:
        return Settings(**{**groups, "weights": Weights("random")}), [_first_line(error)]


def _first_line(error: ConfigError) -> str:
    return str(error).splitlines()[0]  # gin adds lines on where it called what
