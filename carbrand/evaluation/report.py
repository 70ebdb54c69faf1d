"""What a split's evaluation looks like on disk: an `Evaluation` and per-photo predictions in, one folder out.

report.html            to look at: see `page`
model_card.md          see `card`
report.txt             for the terminal: headline numbers, every brand, the most confused pairs, the worst slices
predictions.csv        one row per photo
confusion_matrix.png   who is taken for whom
confusion_matrix.txt   the same in numbers
report.json            everything but the predictions; written last, so its presence marks a complete report
"""

import codecs
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from carbrand import files
from carbrand.errors import DataError
from carbrand.evaluation import confusion, text
from carbrand.evaluation.results import Evaluation, PhotoRow

FORMAT_VERSION = 2
FILE_NAME = "report.json"
PREDICTIONS = "predictions.csv"


def write(
    folder: str | os.PathLike[str], evaluation: Evaluation, rows: Iterable[PhotoRow], pages: Mapping[str, str]
) -> None:
    """Writes a report into `folder`, over an older one if there is one.

    Args:
        folder: made if missing.
        evaluation: of the same photos as `rows`.
        rows: the photos, in the order wanted in predictions.csv.
        pages: texts by file name: those of `page.render` and `card.render`.
    """
    folder = pathlib.Path(folder)
    metrics = evaluation.metrics
    (folder / FILE_NAME).unlink(missing_ok=True)
    files.write_text(folder / "report.txt", text.render(evaluation))
    for name, content in pages.items():
        files.write_text(folder / name, content)
    _write_predictions(folder / PREDICTIONS, rows, [row.brand for row in metrics.per_brand])
    files.write_text(folder / "confusion_matrix.txt", text.confusion_matrix(metrics))
    with files.atomic_writer(folder / "confusion_matrix.png") as file:
        confusion.figure(metrics).savefig(file, format="png", bbox_inches="tight")
    files.write_json(folder / FILE_NAME, {"format_version": FORMAT_VERSION, **dataclasses.asdict(evaluation)})


def load(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads report.json: "format_version" and what `dataclasses.asdict` makes of an `Evaluation`.

    Args:
        folder: of the report; or its report.json.

    Raises:
        DataError: there is no complete report in `folder`, or it has another format version.
    """
    path = path_of(folder)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: not there, so {folder} holds no complete report. Run `carbrand evaluate`.") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Run `carbrand evaluate` again.") from None
    version = report.get("format_version") if isinstance(report, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {version}, not {FORMAT_VERSION}. Run this version's `carbrand evaluate`."
        )
    return report


def load_predictions(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of predictions.csv of a complete report, one for each photo.

    Args:
        folder: of the report; or its report.json.

    Raises:
        DataError: as `load`; or its predictions.csv is gone.
    """
    load(folder)
    path = path_of(folder).with_name(PREDICTIONS)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if not {"sha256", "predicted"} <= set(reader.fieldnames or ()):
            raise ValueError("it has no columns sha256 and predicted")
        return rows
    except FileNotFoundError:
        raise DataError(f"{path}: not there. Keep it beside {FILE_NAME}, or run `carbrand evaluate` again.") from None
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: damaged ({error}). Run `carbrand evaluate` again.") from error


def _write_predictions(path: pathlib.Path, rows: Iterable[PhotoRow], brands: Sequence[str]) -> None:
    with files.atomic_writer(path) as file:
        writer = csv.writer(codecs.getwriter("utf-8")(file), lineterminator="\n")
        writer.writerow(
            ["filename", "sha256", "group", "brand", "predicted", "probability", "correct"]
            + [f"probability_{brand}" for brand in brands]
        )
        writer.writerows(_prediction(row, brands) for row in rows)


def _prediction(row: PhotoRow, brands: Sequence[str]) -> list[str]:
    best = int(np.argmax(row["probabilities"]))
    predicted = brands[best]
    # As many significant digits as the float32 logits have that they were computed from.
    probabilities = [f"{probability:.9g}" for probability in row["probabilities"]]
    is_correct = "true" if predicted == row["brand"] else "false"
    known = [row["filename"], row["sha256"], row["group"], row["brand"]]
    return [*known, predicted, probabilities[best], is_correct, *probabilities]


def path_of(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Of the report.json in `folder`; or `folder`, if it is one."""
    path = pathlib.Path(folder)
    return path if path.name == FILE_NAME else path / FILE_NAME
