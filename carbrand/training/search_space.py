"""A search space: a text file that says from which values each gin binding is drawn.

optimizer.learning_rate = log(1e-4, 1e-1)     # a number, evenly over its logarithm
model.dropout = uniform(0, 0.5)               # a number, evenly
train.run.epochs = int(2, 10)                 # a whole number, both ends included
train.run.batch_size = choice(16, 32, 64)     # one of these values, of any kind
"""

import ast
import dataclasses
import difflib
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from carbrand.errors import ConfigError

_USAGE = {
    "log": "log(1e-4, 1e-1)",
    "uniform": "uniform(0, 0.5)",
    "int": "int(2, 10)",
    "choice": "choice(16, 32, 64)",
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One line of a search space.

    Attributes:
      name: A gin address, such as `optimizer.learning_rate`.
      kind: "log", "uniform", "int" or "choice".
      values: The two limits; of a choice, each value as gin reads it: "64", "'adamw'".
      line: Its number in the file, from 1.
    """

    name: str
    kind: str
    values: tuple[Any, ...]
    line: int

    def __str__(self) -> str:
        return f"{self.name} = {self.kind}({', '.join(map(str, self.values))})"

    def binding(self, value: Any) -> str:
        """The line of gin for a value drawn for this parameter."""
        return f"{self.name} = {value}"

    def find(self, value: Any) -> Any | None:
        """`value`, a Python value, as one that is drawn for this parameter; None where it never is."""
        if self.kind == "choice":
            return repr(value) if repr(value) in self.values else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not _within(value, self.values):
            return None
        if self.kind == "int":
            return int(value) if value == int(value) else None
        return float(value)


def load(path: str | os.PathLike[str]) -> tuple[Parameter, ...]:
    """Reads a search space.

    Raises:
      ConfigError: The file is missing or empty, or a line says nothing that can be searched.
    """
    try:
        text = pathlib.Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a search space ({error}). Name a text file.") from error
    return parse(text, os.fspath(path))


def parse(text: str, where: str) -> tuple[Parameter, ...]:
    """The parameters of a search space's text, in its order; `where` begins each message of an error."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        shown = [*text.splitlines(), ""][line - 1].strip()
        raise ConfigError(
            f"{where}, line {line}: {shown}: cannot be read ({getattr(error, 'msg', error)}). "
            "Write, for example, optimizer.learning_rate = log(1e-4, 1e-1)."
        ) from error
    parameters: dict[str, Parameter] = {}
    for statement in statements:
        written = " ".join((ast.get_source_segment(text, statement) or "").split())
        parameter = _parameter(statement, f"{where}, line {statement.lineno}: {written}")
        if parameter.name in parameters:
            raise ConfigError(
                f"{where}, line {parameter.line}: {parameter.name} stands in line {parameters[parameter.name].line} "
                "already. Remove one of them."
            )
        parameters[parameter.name] = parameter
    if not parameters:
        raise ConfigError(f"{where}: no parameter to search. Write, for example, model.dropout = uniform(0, 0.5).")
    return tuple(parameters.values())


def literal(text: str) -> Any:
    """The value of a Python literal; None where `text` is none, such as a reference of gin's."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _parameter(statement: ast.stmt, place: str) -> Parameter:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        raise ConfigError(f"{place}: no NAME = VALUES. Write, for example, model.dropout = uniform(0, 0.5).")
    name = ast.unparse(statement.targets[0])
    if not isinstance(statement.targets[0], ast.Attribute) or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{place}: {name} is no gin name. Give a name with a dot, such as optimizer.learning_rate.")
    call = statement.value
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ConfigError(f"{place}: one value is not searched. Put it into the recipe, or give values: {_usages()}.")
    kind = call.func.id
    if kind not in _USAGE:
        nearest = difflib.get_close_matches(kind, _USAGE, n=1)
        hint = f"Did you mean {nearest[0]}?" if nearest else f"Give {_usages()}."
        raise ConfigError(f"{place}: {kind}() is not known. {hint}")
    if call.keywords:
        raise ConfigError(f"{place}: {kind} takes values without names. Write {_USAGE[kind]}, for example.")
    return Parameter(name, kind, _CHECKS[kind](_literals(call, place), kind, place), statement.lineno)


def _literals(call: ast.Call, place: str) -> list[Any]:
    values = []
    for argument in call.args:
        try:
            values.append(ast.literal_eval(argument))
        except ValueError as error:
            raise ConfigError(
                f"{place}: {ast.unparse(argument)} is no Python literal. Give numbers, strings in quotes, True, None "
                "or tuples of these."
            ) from error
    return values


def _limits(values: list[Any], kind: str, place: str) -> tuple[Any, ...]:
    is_number = [isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values]
    if len(values) != 2 or not all(is_number):
        raise ConfigError(f"{place}: {kind} takes two numbers. Write {_USAGE[kind]}, for example.")
    low, high = values
    if low >= high:
        raise ConfigError(
            f"{place}: the first limit, {low}, is not below the second, {high}. Give the lower one first."
        )
    if kind == "log" and low <= 0:
        raise ConfigError(f"{place}: the lower limit of log is {low}. Give one above 0, or uniform.")
    if kind == "int" and not all(isinstance(value, int) for value in values):
        raise ConfigError(f"{place}: the limits of int are whole numbers. Write int(2, 10), or uniform({low}, {high}).")
    return (low, high) if kind == "int" else (float(low), float(high))


def _choices(values: list[Any], kind: str, place: str) -> tuple[Any, ...]:
    texts = [repr(value) for value in values]
    if len(set(texts)) < max(2, len(texts)):
        raise ConfigError(f"{place}: {kind} takes two or more different values. Write {_USAGE[kind]}, for example.")
    return tuple(texts)


_CHECKS: dict[str, Callable[[list[Any], str, str], tuple[Any, ...]]] = {
    "log": _limits,
    "uniform": _limits,
    "int": _limits,
    "choice": _choices,
}


def _within(value: float, limits: tuple[Any, ...]) -> bool:
    return limits[0] <= value <= limits[1]


def _usages() -> str:
    *most, last = _USAGE.values()
    return f"{', '.join(most)} or {last}"
