"""The gin glue: recipe files and bindings in, checked; a run's whole config out."""

import contextlib
import difflib
import importlib.util
import inspect
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from carbrand.errors import ConfigError

# gin 0.5.0 uses importlib.util without importing it: the import above is for gin as well.
_RECIPES = "gin_configs"


def parse(gin_files: Sequence[str] = (), bindings: Sequence[str] = ()) -> None:
    """Replaces all gin bindings by those of `gin_files`, then `bindings`, which win. Import the configurables first.

    Raises:
      ConfigError: No such file, bad syntax, or an unknown name (the nearest known one is given).
    """
    gin.clear_config(clear_constants=True)
    for file in gin_files:
        add(read_recipe(file), file)
    for binding in bindings:
        add(binding, f"--gin_param {binding!r}")


def read_recipe(name: str) -> str:
    """The text of a gin file, see `find_recipe`; ConfigError where it is none in UTF-8."""
    path = find_recipe(name)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8 ({error}). Save it as such.") from error


def find_recipe(name: str) -> pathlib.Path:
    """The path of a gin file: as given, or one of our recipes (`probe`, `probe.gin`, `gin_configs/probe.gin`).

    Raises:
      ConfigError: There is none.
    """
    return _find(name, ".gin", "no such gin file, nor a recipe of carbrand's. Recipes")


def find_space(name: str) -> pathlib.Path:
    """The path of a search space: as given, or one of ours, like `find_recipe`."""
    return _find(name, ".space", "no such search space, nor one of carbrand's. Spaces")


def value_of(name: str) -> Any:
    """What the function behind a known gin name will get: the value bound to it, or else the default."""
    with contextlib.suppress(ValueError):  # not bound
        return gin.query_parameter(name)
    selector, _, parameter = name.rpartition(".")
    return inspect.signature(gin.config._REGISTRY.get_match(selector).wrapped).parameters[parameter].default


def _find(name: str, suffix: str, otherwise: str) -> pathlib.Path:
    path = pathlib.Path(name)
    if path.is_file():
        return path
    folder = _recipes_folder()
    own = folder / f"{path.stem}{suffix}"
    if path.parent.name in ("", _RECIPES) and own.is_file():
        return own
    known = ", ".join(sorted(file.stem for file in folder.glob(f"*{suffix}")))
    raise ConfigError(f"{name}: {otherwise}: {known}.")


def as_gin(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Values by group and name -> gin text that sets each of them.

    gin's own operative config holds only what gin itself has passed to a function, not what a Python caller did.
    """
    return "\n".join(f"{group}.{name} = {v!r}" for group, values in groups.items() for name, v in values.items()) + "\n"


def _recipes_folder() -> pathlib.Path:
    spec = importlib.util.find_spec(_RECIPES)
    assert spec is not None
    assert spec.submodule_search_locations
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def add(text: str, where: str | os.PathLike[str]) -> None:
    """Adds the bindings of `text` to those there are; messages of errors begin with `where`."""
    try:
        gin.parse_config(text)
    except (ValueError, SyntaxError, OSError, ImportError) as error:
        message = str(error).splitlines()[0].rstrip(".")
        line = re.search(r"line (\d+)", str(error))
        place = f"{where}, line {line[1]}" if line and len(text.splitlines()) > 1 else f"{where}"
        hint = _hint(text, str(error)) if isinstance(error, ValueError | SyntaxError) else ""
        raise ConfigError(f"{place}: {message}.{hint}") from error


def _hint(text: str, message: str) -> str:
    known = _known_parameters()
    unknown = re.search(r"^\s*([\w./]+)\s*=", _offending_line(text, message), re.MULTILINE)
    if not unknown or not message.startswith(("No configurable", "Configurable")):
        return " A value is a Python literal: strings in quotes, None, True, numbers, tuples."
    nearest = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.4)
    return f" Did you mean {nearest[0]}?" if nearest else f" Known: {', '.join(known)}."


def _offending_line(text: str, message: str) -> str:
    number = re.search(r"line (\d+)", message)
    lines = text.splitlines()
    return lines[int(number[1]) - 1] if number and int(number[1]) <= len(lines) else text


def _known_parameters() -> list[str]:
    """Every knob, as a recipe addresses it: such as `model.variant` or `train.run.epochs`."""
    return sorted(
        f"{selector.removeprefix('carbrand.')}.{parameter.name}"
        for selector, configurable in gin.config._REGISTRY.items()
        if not selector.startswith("gin.")
        for parameter in inspect.signature(configurable.wrapped).parameters.values()
        if parameter.default is not parameter.empty
    )
