"""Files, folders and patterns -> a table, CSV or JSONL with one row per photo, in order."""

import contextlib
import io
import itertools
import json
import mimetypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import tqdm

from carbrand import checks, exported, files
from carbrand.data import local_files, photo_paths
from carbrand.data.paths import printable, shown
from carbrand.errors import ConfigError
from carbrand.serving.predictor import BATCH_SIZE, Failure, Photo, Prediction, Predictor

Row = tuple[str, Prediction | Failure]


def run(
    model_dir: str | os.PathLike[str],
    paths: Sequence[str],
    *,
    names_from: str | None = None,
    output_format: str = "table",
    output: str | os.PathLike[str] | None = None,
) -> tuple[int, int]:
    """Predicts files, the files in folders, those that fit a pattern, and a photo that comes through stdin.

    Args:
      model_dir: An exported model.
      paths: Files, folders, patterns, or "-" for stdin.
      names_from: A list of more of them, see `photo_paths.read_list`.
      output_format: "table", "csv" or "jsonl".
      output: A file for the rows; None: they are printed as they come.

    Returns:
      The number of photos, and of those without a prediction.

    Raises:
      ConfigError: Nothing is given.
      DataError: A path or list does not exist, or there is nothing in it.
    """
    checks.choice("--format", output_format, tuple(_WRITERS))
    listed = photo_paths.read_list(names_from, local_files) if names_from else ()
    names = list(photo_paths.expand(itertools.chain(paths, listed), local_files))
    if not names:
        raise ConfigError("No photos are given. Name some, or give a list of them with --list.")
    if output is not None:
        if (mimetypes.guess_type(output)[0] or "").startswith("image/"):  # photos/*.jpg becomes more than one path
            raise ConfigError(f"--output={output}: is named like a photo. Name a file for the predictions.")
        files.check_new(output, [*names, *([names_from] if names_from else ())])
        exported.check_elsewhere(output, exported.find(model_dir))
    predictor = Predictor(model_dir)
    failures = 0

    def done(results: Sequence[Prediction | Failure]) -> None:
        nonlocal failures
        failures += sum(isinstance(result, Failure) for result in results)
        bar.update(len(results))

    is_silent = None if output or not sys.stdout.isatty() else True
    with _opened(output) as file, tqdm.tqdm(total=len(names), unit="photo", desc="predict", disable=is_silent) as bar:
        for line in _WRITERS[output_format](predictor, names, predicted(predictor, names, _photo, done)):
            file.write(line)
    return len(names), failures


def predicted(
    predictor: Predictor,
    names: Sequence[str],
    read: Callable[[str], Photo],
    done: Callable[[Sequence[Prediction | Failure]], None],
) -> Iterator[Row]:
    """Each of `names` with the prediction of the photo that `read` finds under it, in order; `done` gets each batch."""
    for start in range(0, len(names), BATCH_SIZE):
        batch = names[start : start + BATCH_SIZE]
        results = predictor.predict([read(name) for name in batch])
        yield from zip(batch, results, strict=True)
        done(results)


def flat(predictor: Predictor, result: Prediction | Failure) -> dict[str, object]:
    """A result as the columns of a table; None where a failure has none."""
    fields = predictor.fields(result)
    shares = fields.pop("probabilities", {})
    columns = {name: fields.get(name) for name in ("brand", "probability", "unknown_score", "is_unknown", "error")}
    return {**columns, **{f"probability_{brand}": shares.get(brand) for brand in predictor.brands}}


def _photo(name: str) -> Photo:
    return sys.stdin.buffer.read() if name == photo_paths.STDIN else name


@contextlib.contextmanager
def _opened(output: str | os.PathLike[str] | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    with files.atomic_writer(output) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        yield text
        text.detach()  # else it would close the file before that is renamed


def _table(_: Predictor, names: Sequence[str], rows: Iterator[Row]) -> Iterator[str]:
    width = max(len(_printable(name)) for name in names)
    for name, result in rows:
        yield f"{_printable(name):<{width}}  {_line(result)}\n"


def _printable(name: str) -> str:
    return printable(shown(name))


def _line(result: Prediction | Failure) -> str:
    if isinstance(result, Failure):
        return f"     —  {result.reason}"
    doubt = f"  (perhaps none of the brands: less familiar than {result.unknown_score:.0%} of known photos)"
    return f"{result.probability:>6.1%}  {result.brand}{doubt if result.is_unknown else ''}"


def _csv(predictor: Predictor, _: Sequence[str], rows: Iterator[Row]) -> Iterator[str]:
    header = ["path", *flat(predictor, Failure(""))]
    yield files.csv_text([header])
    for name, result in rows:
        yield files.csv_text([[shown(name), *flat(predictor, result).values()]])


def _jsonl(predictor: Predictor, _: Sequence[str], rows: Iterator[Row]) -> Iterator[str]:
    for name, result in rows:
        fields = {"path": shown(name), **predictor.fields(result)}
        yield json.dumps(fields, ensure_ascii=False) + "\n"


_WRITERS = {"table": _table, "csv": _csv, "jsonl": _jsonl}
