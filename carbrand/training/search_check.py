"""Whether gin knows the names of a search, and what the recipe gives them; in a process of its own.

`python -m carbrand.training.search_check` loads TensorFlow, as the names come from the code of the training; the tuner,
which calls `in_own_process`, stays without it, and the caller's own gin bindings stay as they are.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from carbrand import config
from carbrand.errors import CarbrandError, ConfigError


def in_own_process(gin_files: Sequence[str], gin_params: Sequence[str], bindings: Mapping[str, str]) -> dict[str, Any]:
    """Parses the recipe, then `bindings` (their place in a file -> gin text).

    Returns:
      The recipe's value, as Python text, of each name that `bindings` bind, of `train.run.epochs` and of
      `train.run.head_epochs`.

    Raises:
      ConfigError: As `config.parse` raises it.
    """
    request = json.dumps([list(gin_files), list(gin_params), dict(bindings)])
    command = [sys.executable, "-m", "carbrand.training.search_check"]
    process = subprocess.run(command, input=request, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}:\n{process.stderr}")
    answer = json.loads(process.stdout.splitlines()[-1])
    if "error" in answer:
        raise ConfigError(answer["error"])
    return answer["values"]


def recipe_values(gin_files: Sequence[str], gin_params: Sequence[str], bindings: Mapping[str, str]) -> dict[str, str]:
    """As `in_own_process`, in this process."""
    from carbrand.training import train  # noqa: F401  so that gin knows its names

    config.parse(gin_files, gin_params)
    names = [binding.partition("=")[0].strip() for binding in bindings.values()]
    for place, binding in bindings.items():
        config.add(binding, place)
    config.parse(gin_files, gin_params)  # again, without the bindings
    return {name: repr(config.value_of(name)) for name in (*names, "train.run.epochs", "train.run.head_epochs")}


def _answer() -> None:
    try:
        answer: dict[str, Any] = {"values": recipe_values(*json.load(sys.stdin))}
    except CarbrandError as error:
        answer = {"error": str(error).splitlines()[0]}
    print(json.dumps(answer))


if __name__ == "__main__":
    _answer()
