"""What can be wrong with a training before it starts."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
      severity: "error" or "warning".
      where: A setting by its gin name, a split, a file or a device.
      message: One line: where, what, the value, what to do.
    """

    severity: Literal["error", "warning"]
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}"


def from_setting(message: str) -> Finding:
    """Of the message of a ConfigError, which begins with a setting's name."""
    return error(message.partition("=")[0], message)


def error(where: str, message: str) -> Finding:
    """With which no training should start."""
    return Finding("error", where, message)


def warning(where: str, message: str) -> Finding:
    """With which a training can live."""
    return Finding("warning", where, message)
