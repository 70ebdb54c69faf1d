"""A trained model over a split, each example exactly once: a run or an export in, a report folder out."""

import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
import tqdm

from carbrand import checks
from carbrand.data import catalogue, ledger, manifest, overlay, pipeline
from carbrand.data.reader import RecordReader
from carbrand.errors import ConfigError, DataError, GateError
from carbrand.evaluation import calibration, card, gate, heatmap, metrics, page, report, slices, trained
from carbrand.evaluation.results import Evaluation, PhotoRow
from carbrand.evaluation.trained import Trained
from carbrand.training import checkpoint, temperature


def run(
    data: str | os.PathLike[str],
    *,
    run_dir: str | os.PathLike[str] | None = None,
    model_dir: str | os.PathLike[str] | None = None,
    split: str = "test",
    output: str | os.PathLike[str] | None = None,
    which: str = "latest",
    baseline: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
) -> tuple[metrics.Metrics, pathlib.Path]:
    """Evaluates a checkpoint of a run, or an exported model, in float32.

    Args:
      data: A records folder with the brands that the model was trained on; its `evaluations.jsonl` notes the look.
      run_dir: A run; or
      model_dir: An exported model.
      split: Of `data`.
      output: Gets the report; by default the folder `evaluation-SPLIT` in the run or model folder.
      which: Of the run's checkpoints: "latest" or "best", see `checkpoint.load_run`.
      baseline: A report of the model before, on the same photos: its folder, or the report.json in it.
      batch_size: Photos per forward pass, over all replicas; the result does not depend on it.

    Returns:
      The metrics, and the folder of the report.

    Raises:
      ConfigError: The folder of the report is a file, or that of `baseline`.
      DataError: The split is empty, or `data` has other brands than the model, or `baseline` other photos.
      GateError: The model is worse than `baseline`, by macro F1 or on a part of the photos; the report is written.
    """
    folder = _folder(run_dir or model_dir or "", split, output)
    _check_folder(folder, baseline)
    dataset = manifest.load(data)
    reader = RecordReader(data, split)
    before = None if baseline is None else report.load_predictions(baseline)
    model = trained.load(run_dir, model_dir, which)
    trained.check_brands(dataset, data, model.brands, model.folder)
    trained.warn_of_other_records(dataset, data, model)
    with pipeline.data_errors():
        batches = model.predict(data, split, batch_size)
        logits = np.concatenate(list(_with_progress(batches, len(reader), f"evaluate {split}")))
    probabilities = temperature.probabilities(logits)
    photos = manifest.load_photos(data, split)
    groups, labels = [photo.group for photo in photos], reader.labels
    columns = slices.columns_of(photos)
    result = metrics.compute(labels, probabilities, model.brands, groups)
    scores = {"accuracy": result.accuracy, "macro_f1": result.macro.f1}
    facts = {"model": str(model.folder), **model.facts, "records": dataset.fingerprint, "split": split}
    looks = ledger.add(data, split, dataset.fingerprint, {**facts, **scores})
    evaluation = Evaluation(
        facts={**facts, "evaluations of this split so far": looks},
        metrics=result,
        calibration=calibration.compute(labels, logits, model.temperature),
        slices=slices.compute(columns, probabilities.argmax(axis=1) == labels, groups),
        comparison=None if before is None else _compare(before, str(baseline), dataset, photos, probabilities, columns),
    )
    html = page.render(evaluation, labels, probabilities, photos, run=model.folder, pictures=_Pictures(model, reader))
    pages = {"report.html": html, card.FILE_NAME: card.render(evaluation, dataset, model)}
    report.write(folder, evaluation, _rows(photos, probabilities), pages)
    worse = [row for row in evaluation.comparison or [] if row.is_worse]
    if worse:
        raise GateError(
            f"{model.folder}: worse than {baseline} beyond chance: "
            + ", ".join(f"{row.what} {100 * row.before:.1f} -> {100 * row.now:.1f} %" for row in worse[:5])
            + f"{', …' if len(worse) > 5 else ''}. {folder / 'report.txt'} has the intervals."
        )
    return result, folder


def check_several(
    run_dirs: Sequence[str | os.PathLike[str]], split: str, output: str | os.PathLike[str], which: str = "latest"
) -> None:
    """Checks what can be known before the first of several runs is evaluated, for `compare.run` to write to `output`.

    Raises:
      ConfigError: `output`, or the folder of a run's report, is a file.
      CheckpointError: One of `run_dirs` is no run, or has no such checkpoint.
    """
    checks.folder("--output", output)
    for run_dir in run_dirs:
        _check_folder(_folder(run_dir, split, None), None)
        checkpoint.load_run(run_dir, which)


def _folder(model_folder: str | os.PathLike[str], split: str, output: str | os.PathLike[str] | None) -> pathlib.Path:
    return pathlib.Path(output or pathlib.Path(model_folder) / f"evaluation-{split}")


def _check_folder(folder: pathlib.Path, baseline: str | os.PathLike[str] | None) -> None:
    checks.folder("--output", folder)
    if baseline is not None and os.path.realpath(report.path_of(baseline).parent) == os.path.realpath(folder):
        raise ConfigError(
            f"--baseline={baseline}: the new report would be written over it, into {folder}. Give another --output."
        )


class _Pictures:
    """The evaluated photos for people to look at, by their number in the split."""

    def __init__(self, model: Trained, reader: RecordReader) -> None:
        self._model, self._reader = model, reader

    def photo(self, number: int) -> bytes:
        """As a JPEG."""
        return self._reader.photo(number)

    def heat(self, numbers: list[int], labels: list[int]) -> list[bytes]:
        """What the model sees of photos, as JPEGs, with the map of what speaks for the brand of a label."""
        if not numbers:
            return []
        preprocess = self._model.preprocess
        images = np.stack([preprocess(tf.constant(self.photo(number))).numpy() for number in numbers])
        maps = heatmap.make(self._model.make_model())(images, np.array(labels))
        return [overlay.jpeg(*pair) for pair in zip(images, maps, strict=True)]


def _compare(
    before: list[dict[str, str]],
    where: str,
    dataset: manifest.Manifest,
    photos: list[catalogue.Row],
    probabilities: np.ndarray,
    columns: dict[str, list[str]],
) -> list[gate.Difference]:
    theirs, ours = gate.common([row["sha256"] for row in before], [photo.sha256 for photo in photos], where)
    predicted = [row["predicted"] for row in before]
    unknown = sorted(set(predicted) - set(dataset.brands))
    if unknown:
        raise DataError(f"{where}: predicts {unknown[0]}, which is no brand of these records.")
    label_of = {brand: label for label, brand in enumerate(dataset.brands)}
    return gate.compare(
        np.array([label_of[photos[place].brand] for place in ours]),
        np.array([label_of[predicted[place]] for place in theirs]),
        probabilities.argmax(axis=1)[ours],
        brands=dataset.brands,
        columns={name: [parts[place] for place in ours] for name, parts in columns.items()},
        groups=[photos[place].group for place in ours],
    )


def _with_progress(batches: Iterator[np.ndarray], total: int, title: str) -> Iterator[np.ndarray]:
    with tqdm.tqdm(total=total, unit="photo", desc=title, disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _rows(photos: list[catalogue.Row], probabilities: np.ndarray) -> Iterator[PhotoRow]:
    for photo, row in zip(photos, probabilities, strict=True):
        yield {
            "filename": photo.name,
            "sha256": photo.sha256,
            "group": photo.group,
            "brand": photo.brand,
            "probabilities": row,
        }
