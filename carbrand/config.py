"""The gin glue: recipe files and bindings in, checked; a run's whole config out."""

import contextlib
import difflib
import graphlib
import importlib.util
import inspect
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import numpy as np

from carbrand.errors import ConfigError

# gin 0.5.0 uses importlib.util without importing it: the import above is for gin as well.
_RECIPES = "gin_configs"


def parse(gin_files: Sequence[str] = (), bindings: Sequence[str] = ()) -> None:
    """Replaces all gin bindings by those of `gin_files`, then `bindings`, which win. Import the configurables first.

    Raises:
      ConfigError: No such file, bad syntax, an unknown name (the nearest known one is given), or a name that sets
        nothing.
    """
    gin.clear_config(clear_constants=True)
    recipes = [(read_recipe(file), file) for file in gin_files]
    texts = [*recipes, *((binding, f"--gin_param {binding!r}") for binding in bindings)]
    for text, where in texts:
        add(text, where)
    _check_macros_and_scopes("\n".join(text for text, _ in texts))
    _check_circles()


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
    return _parameters(selector)[parameter].default


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
    lines = [f"{group}.{name} = {_plain(v)!r}" for group, values in groups.items() for name, v in values.items()]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """`value`, with Python's numbers in place of numpy's, whose repr gin cannot read."""
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


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
    _check_not_of_command(where)


def _check_not_of_command(where: str | os.PathLike[str]) -> None:
    """Arguments without a default come from the command line, which gin's bindings never win over."""
    for (_, selector), values in gin.config._CONFIG.items():
        for name in () if selector.startswith("gin.") else values:
            if _parameters(selector)[name].default is inspect.Parameter.empty:
                raise ConfigError(f"{where}: {_short(selector)}.{name} is given on the command line. Remove it here.")


def _check_macros_and_scopes(text: str) -> None:
    """Raises ConfigError where `text`, all that was parsed, has a name that gin takes for a macro or scope of no use.

    To gin, `epochs = 3` without its prefix is a macro. One whose every use was overridden later is none the worse.
    """
    references = list(gin.config.iterate_references(gin.config._CONFIG))
    used = [f"{name}/" for name in (*re.findall(r"[%@]([\w./]+)", text), *(ref.scoped_selector for ref in references))]
    for (scope, selector), values in gin.config._CONFIG.items():
        if scope and not any(name.startswith(f"{scope}/") for name in used):
            parameter = next(iter(values))
            name = scope if _is_macro(selector) else f"{scope}/{_short(selector)}.{parameter}"
            raise ConfigError(f"{name}={values[parameter]!r}: sets nothing.{_nearest(name.rpartition('/')[2])}")
    for reference in references:
        if _is_macro(reference.config_key[1]) and reference.config_key not in gin.config._CONFIG:
            raise ConfigError(f"{reference}: is not set. Add, for example, {str(reference)[1:]} = 1, or give a value.")


def _check_circles() -> None:
    """Raises ConfigError where a binding refers to itself, which gin would follow without end."""

    def node(scope: str, selector: str) -> str:
        return f"%{scope}" if _is_macro(selector) else _short(selector)

    refers_to: dict[str, set[str]] = {}
    for key, values in gin.config._CONFIG.items():
        found = {node(*reference.config_key) for reference in gin.config.iterate_references(values)}
        refers_to.setdefault(node(*key), set()).update(found)
    try:
        graphlib.TopologicalSorter(refers_to).prepare()
    except graphlib.CycleError as error:
        names = " -> ".join(reversed(error.args[1]))
        raise ConfigError(f"{names}: gin's bindings refer to themselves. Give one of them a value.") from error


def _is_macro(selector: str) -> bool:
    return selector == "gin.macro"


def _short(selector: str) -> str:
    return selector.removeprefix("carbrand.")


def _hint(text: str, message: str) -> str:
    unknown = re.search(r"^\s*([\w./]+)\s*=", _offending_line(text, message), re.MULTILINE)
    if not unknown or not message.startswith(("No configurable", "Configurable")):
        return " A value is a Python literal: strings in quotes, None, True, numbers, tuples."
    return _nearest(unknown[1])


def _nearest(name: str) -> str:
    known = _known_parameters()
    same = [parameter for parameter in known if parameter.rpartition(".")[2] == name]
    nearest = same or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f" Did you mean {nearest[0]}?" if nearest else f" Known: {', '.join(known)}."


def _offending_line(text: str, message: str) -> str:
    number = re.search(r"line (\d+)", message)
    lines = text.splitlines()
    return lines[int(number[1]) - 1] if number and int(number[1]) <= len(lines) else text


def _known_parameters() -> list[str]:
    """Every knob, as a recipe addresses it: such as `model.variant` or `train.run.epochs`."""
    return sorted(
        f"{_short(selector)}.{parameter.name}"
        for selector, _ in gin.config._REGISTRY.items()
        if not selector.startswith("gin.")
        for parameter in _parameters(selector).values()
        if parameter.default is not parameter.empty
    )


def _parameters(selector: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(gin.config._REGISTRY.get_match(selector).wrapped).parameters
