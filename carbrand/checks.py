"""Checks of settings and options: gin passes on any value, so each setting is checked where it is defined."""

import math
import numbers
import os
import pathlib
import stat
from collections.abc import Sequence
from typing import Any

from carbrand.errors import ConfigError


def number(name: str, value: Any, *, at_least: float | None = None, above: float | None = None,
           at_most: float | None = None, below: float | None = None, whole: bool = False) -> None:  # fmt: skip
    """Raises ConfigError unless `value` is a finite number, whole if asked for, within the limits given."""
    kind = "whole number" if whole else "number"
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    limits = [
        f"{words} {limit:g}"
        for words, limit in (("at least", at_least), ("above", above), ("at most", at_most), ("below", below))
        if limit is not None
    ]
    inside = (
        is_number
        and math.isfinite(value)
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    if not inside:
        raise ConfigError(f"{name}={value!r}: give a {' '.join([kind, ' and '.join(limits)]).strip()}.")


def whole(name: str, value: Any, *, at_least: float | None = None) -> int:
    """`value`, which may be one of numpy's whole numbers, as an int; else raises ConfigError, as `number` does."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
    number(name, value, at_least=at_least, whole=True)
    return value


def kind(name: str, value: Any, wanted: type) -> None:
    """Raises ConfigError unless `value` is None or one of `wanted`, a class of carbrand's."""
    if not isinstance(value, wanted | None):
        raise ConfigError(f"{name}={value!r}: is no {wanted.__name__}. Give carbrand.{wanted.__name__}(…), or None.")


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}.")


def boolean(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is neither True nor False.")


def folder(name: str, path: str | os.PathLike[str]) -> None:
    """Raises ConfigError if `path` is there and is no folder, or cannot be one."""
    try:
        is_folder = stat.S_ISDIR(pathlib.Path(path).stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{name}={path}: {error.strerror}. Name a folder.") from error
    if not is_folder:
        raise ConfigError(f"{name}={path}: is a file. Name a folder.")
