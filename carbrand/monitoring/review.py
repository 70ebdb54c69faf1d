"""Photos for a person to look at: some of a prediction log, to be labelled, or those of a dataset with doubtful labels.

review.html   the photos, with a field for the brand of each; saves those that were named as labels.csv
review.csv    the same photos, with an empty column for their brands
photos/       those of a log, as they were sent; `build` reads labels.csv with them
"""

import dataclasses
import logging
import os
import pathlib
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm
from numpy.typing import NDArray

from carbrand import checks, exported, files, templates
from carbrand.data import catalogue, images, manifest
from carbrand.data.paths import shown
from carbrand.data.reader import RecordReader
from carbrand.errors import ConfigError, DataError
from carbrand.monitoring import answers, selection
from carbrand.monitoring.answers import Period
from carbrand.serving.prediction_log import PHOTOS

PAGE, TABLE, LABELS = "review.html", "review.csv", "labels.csv"
NUM_PHOTOS = 100
CONTRADICTED = "label contradicted"
_THUMBNAIL_PX = 480
_BATCH = 32
_LOG = logging.getLogger(__name__)
_COLUMNS = ("path", "brand", "sha256", "label", "suggested", "probability", "chosen")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A photo to look at.

    Attributes:
      path: Of the photo; of a log's relative to the table, else where the dataset found it.
      sha256: Of its content.
      label: The brand that it has, or "".
      suggested: The brand that the model sees; of a dataset's, the one that the other photos suggest.
      probability: Of that brand, 0 to 1.
      chosen: Why it was chosen.
    """

    path: str
    sha256: str
    label: str
    suggested: str
    probability: float
    chosen: str


@dataclasses.dataclass(frozen=True)
class RecordedPhoto:
    """A photo of a records folder: its number in the split that `reader` reads, and its row in the catalogue."""

    reader: RecordReader
    number: int
    row: catalogue.Row

    def encoded(self) -> bytes:
        """Its JPEG."""
        return self.reader.photo(self.number)


_Found = tuple[Candidate, bytes, pathlib.Path | None]  # a JPEG of the photo, and the file that is to be copied


def run(
    model_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    log: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    photos: int = NUM_PHOTOS,
    since: str | None = None,
    until: str | None = None,
    seed: int = 0,
) -> list[Candidate]:
    """Writes photos for review into the folder `output`.

    Args:
      model_dir: An exported model.
      output: A new or empty folder.
      log: What `carbrand serve --log --keep_photos` wrote: photos to be labelled, see `selection`; or
      data: A records folder: photos whose labels the others contradict, see `suspects`, most doubtful first. About
        25 kB of memory are needed for each photo of the folder.
      photos: At most so many.
      since: Of a log, only answers from this date or time on (ISO 8601; UTC if it names no zone).
      until: Of a log, only answers before it.
      seed: Of a log, of the photos that are chosen by chance.

    Returns:
      The photos, in the order of the page.

    Raises:
      ConfigError: Both `log` and `data` are given, or none; `output` holds something; a number or time is none.
      DataError: The model, log or data is not there, or has no photos, or too few.
    """
    if (log is None) == (data is None):
        raise ConfigError("Give one of --log and --data.")
    if data is not None and (since or until):
        raise ConfigError("--since and --until choose answers of a log. Give --log, or leave them out.")
    checks.folder("--output", output)
    checks.number("--photos", photos, at_least=1, whole=True)
    checks.number("--seed", seed, at_least=0, whole=True)
    output = pathlib.Path(output)
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"--output={output}: is not empty, and may hold labels. Name a new folder.")
    period = Period.parse(since, until)
    version = exported.find(model_dir)
    brands = exported.load(version).brands
    exported.check_elsewhere(output, version)
    if log is not None:
        found = _of_log(version, pathlib.Path(log), period, photos, seed)
    else:
        found = _of_data(version, data or "", photos)
    candidates = [candidate for candidate, _, _ in found]
    pages = {
        PAGE: _page(found, brands, output, is_log=log is not None),
        TABLE: files.csv_text([_COLUMNS, *map(_row, candidates)]),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".unfinished-") as unfinished:
        folder = pathlib.Path(unfinished, "review")
        for candidate, _, original in found:
            if original is not None:
                (folder / PHOTOS).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(original, folder / candidate.path)
        for name, content in pages.items():
            files.write_text(folder / name, content)
        folder.replace(output)  # which is not there, or empty
    return candidates


def _of_log(version: pathlib.Path, log: pathlib.Path, period: Period, num_photos: int, seed: int) -> list[_Found]:
    """The chosen photos of a log, and what they will be called."""
    known = answers.read(log, version=exported.number_of(version), period=period)
    folder = (log if log.is_dir() else log.parent) / PHOTOS
    paths = [folder / name[:2] / name for name in known.sha256]
    kept = np.flatnonzero([path.is_file() for path in paths])
    if not len(kept):
        raise DataError(f"{folder}: holds none of the {len(known)} photos in {log}. Serve with --keep_photos.")
    if len(kept) < len(known):
        _LOG.warning("%s: holds %d of the %d photos; the others cannot be chosen", folder, len(kept), len(known))
    chosen = selection.choose(known.probability[kept], known.is_unknown[kept], num_photos, seed)
    found = []
    for place, reason in chosen.items():
        row = int(kept[place])
        try:
            content = paths[row].read_bytes()
            name = f"{PHOTOS}/{known.sha256[row]}{images.suffix(content)}"
            picture = images.normalise(content, resize_short_px=2 * _THUMBNAIL_PX).encoded
        except images.Rejected as error:
            _LOG.warning("%s: left out, %s: %s", paths[row], error.reason, error.detail)
            continue
        answer = known.brand[row], float(known.probability[row])
        found.append((Candidate(name, known.sha256[row], "", *answer, reason), picture, paths[row]))
    if not found:
        raise DataError(f"{folder}: none of the {len(chosen)} chosen photos can be used. Look at the server's disk.")
    return found


def _of_data(version: pathlib.Path, data: str | os.PathLike[str], num_photos: int) -> list[_Found]:
    """The photos of all splits whose labels the others contradict most."""
    from carbrand.monitoring import suspects  # here and not at the top: it loads scikit-learn

    photos = list(photos_of(data))
    groups = np.array([photo.row.group for photo in photos])
    brands, labels = np.unique([photo.row.brand for photo in photos], return_inverse=True)
    if not suspects.are_enough(labels, groups):
        raise DataError(f"{data}: has too few photos to say something of each from the others. {suspects.NEEDED}")
    shares = suspects.probabilities(features_of(version, photos), labels, groups)
    margins = suspects.margins(shares, labels)
    doubtful = [place for place in np.argsort(margins, kind="stable").tolist() if margins[place] < 0]
    found: list[_Found] = []
    for place in doubtful[:num_photos]:
        row, best = photos[place].row, int(shares[place].argmax())
        answer = str(brands[best]), float(shares[place, best])
        found.append((Candidate(row.uri, row.sha256, row.brand, *answer, CONTRADICTED), photos[place].encoded(), None))
    return found


def photos_of(data: str | os.PathLike[str]) -> Iterator[RecordedPhoto]:
    """All photos of a records folder, split by split."""
    for split, content in manifest.load(data).splits.items():
        if content.num_examples:
            reader = RecordReader(data, split)
            for number, row in enumerate(manifest.load_photos(data, split)):
                yield RecordedPhoto(reader, number, row)


def features_of(model_dir: str | os.PathLike[str], photos: Sequence[RecordedPhoto]) -> NDArray[np.floating]:
    """What the model's head sees of each photo, [N, F] float32."""
    from carbrand.serving.predictor import Predictor  # here and not at the top: it loads TensorFlow

    predictor = Predictor(model_dir)
    found = []
    with tqdm.tqdm(total=len(photos), unit="photo", desc="review") as bar:
        for start in range(0, len(photos), _BATCH):
            found.append(predictor.features([photo.encoded() for photo in photos[start : start + _BATCH]]))
            bar.update(len(found[-1]))
    return np.concatenate(found)


def _page(found: Sequence[_Found], brands: Sequence[str], output: pathlib.Path, *, is_log: bool) -> str:
    return templates.load("carbrand.monitoring", "review.html").render(
        photos=[
            (candidate, templates.data_uri(images.preview(picture, _THUMBNAIL_PX))) for candidate, picture, _ in found
        ],
        columns=_COLUMNS,
        rows=[_row(candidate) for candidate, _, _ in found],
        brands=brands,
        table=LABELS,
        folder=shlex.quote(shown(str(output))),
        is_log=is_log,
    )


def _row(candidate: Candidate) -> list[str]:
    """As it stands in the table; the brand is for a person to fill in."""
    values = {**dataclasses.asdict(candidate), "brand": "", "probability": f"{candidate.probability:.3f}"}
    return [values[column] for column in _COLUMNS]
