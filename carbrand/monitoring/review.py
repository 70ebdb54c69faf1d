"""Photos for a person to look at: some of a prediction log, to be labelled, or those of a dataset with doubtful labels.

review.html   the photos, with a field for the brand of each; saves the table of those that were filled in
review.csv    the same photos, with an empty column for their brands
photos/       those of a log, as they were sent; the table names them, so that `build` reads it once it is filled in
"""

import csv
import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm
from numpy.typing import NDArray

from carbrand import checks, exported, files, templates
from carbrand.data import catalogue, images, manifest, records
from carbrand.data.reader import RecordReader
from carbrand.errors import ConfigError, DataError
from carbrand.monitoring import answers, selection, suspects
from carbrand.monitoring.answers import Period
from carbrand.serving.prediction_log import PHOTOS

PAGE, TABLE = "review.html", "review.csv"
NUM_PHOTOS = 100
MIN_GROUPS = 10  # of a dataset, to say something of each from the others; a guess
CONTRADICTED = "label contradicted"
_THUMBNAIL_PX = 256
_BATCH = 32
_COLUMNS = ("path", "brand", "sha256", "label", "suggested", "probability", "chosen")
Photo = tuple[Callable[[], bytes], catalogue.Row]  # reads the JPEG of a record; what else is known of it


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A photo to look at.

    Attributes:
      path: Of the photo; of a log's relative to the table, else where the dataset found it.
      sha256: Of its content.
      label: The brand that it has, or "".
      suggested: The brand that the model sees.
      probability: Of that brand, 0 to 1.
      chosen: Why it was chosen.
    """

    path: str
    sha256: str
    label: str
    suggested: str
    probability: float
    chosen: str


def run(
    model_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    log: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    num_photos: int = NUM_PHOTOS,
    since: str | None = None,
    until: str | None = None,
    seed: int = 0,
) -> list[Candidate]:
    """Writes photos for review into the folder `output`.

    Args:
      model_dir: An exported model.
      output: A new or empty folder.
      log: What `carbrand serve --log --keep_photos` wrote: photos to be labelled, see `selection`; or
      data: A records folder: photos whose labels the others contradict, see `suspects`, most doubtful first.
      num_photos: At most so many.
      since: Of a log, only answers from this date or time on (ISO 8601; UTC if it names no zone).
      until: Of a log, only answers before it.
      seed: Of the photos that are chosen by chance.

    Raises:
      ConfigError: Both `log` and `data` are given, or none; `output` holds something; or a number is none.
      DataError: The model, log or data is not there, or has no photos.
    """
    if (log is None) == (data is None):
        raise ConfigError("Give one of --log and --data.")
    checks.folder("--output", output)
    checks.number("--photos", num_photos, at_least=1, whole=True)
    output = pathlib.Path(output)
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"--output={output}: is not empty, and may hold labels. Name a new folder.")
    period = Period.parse(since, until)
    if log is not None:
        found = _of_log(model_dir, pathlib.Path(log), output, period, num_photos, seed)
    else:
        found = _of_data(model_dir, data or "", num_photos)
    pictures = [templates.data_uri(images.preview(jpeg, _THUMBNAIL_PX)) for _, jpeg in found]
    candidates = [candidate for candidate, _ in found]
    page = templates.load("carbrand.monitoring", "review.html").render(
        photos=list(zip(candidates, pictures, strict=True)),
        rows=[_row(candidate) for candidate in candidates],
        brands=exported.load(model_dir).brands,
        table=TABLE,
        folder=output.name,
        is_log=log is not None,
    )
    files.write_text(output / PAGE, page)
    files.write_text(output / TABLE, _table(candidates))
    return candidates


def _of_log(
    model_dir: str | os.PathLike[str], log: pathlib.Path, output: pathlib.Path, period: Period, number: int, seed: int
) -> list[tuple[Candidate, bytes]]:
    """The chosen photos of a log, which are copied into `output`, each with a JPEG of it."""
    version = exported.find(model_dir)
    known = answers.read(log, version=exported.number_of(version), period=period)
    paths = [log / PHOTOS / name[:2] / name for name in known.sha256.tolist()]
    kept = np.flatnonzero([path.is_file() for path in paths])
    if not len(kept):
        raise DataError(f"{log}: keeps none of the {len(known)} photos. Serve with --keep_photos.")
    chosen = selection.choose(known.probability[kept], known.is_unknown[kept], number, seed)
    (output / PHOTOS).mkdir(parents=True, exist_ok=True)
    found = []
    for place, reason in chosen.items():
        row = int(kept[place])
        content = paths[row].read_bytes()
        try:
            jpeg = images.normalise(content, resize_short_px=2 * _THUMBNAIL_PX).encoded
        except images.Rejected as error:
            raise DataError(f"{paths[row]}: {error.reason}: {error.detail}. Remove it.") from error
        name = f"{PHOTOS}/{known.sha256[row]}{images.suffix(content)}"
        files.write_bytes(output / name, content)
        answer = str(known.brand[row]), float(known.probability[row])
        found.append((Candidate(name, str(known.sha256[row]), "", *answer, reason), jpeg))
    return found


def _of_data(
    model_dir: str | os.PathLike[str], data: str | os.PathLike[str], number: int
) -> list[tuple[Candidate, bytes]]:
    """The photos of all splits whose labels the others contradict most, each with its JPEG."""
    dataset = manifest.load(data)
    photos = list(photos_of(data, dataset))
    groups = np.array([photo.group for _, photo in photos])
    if len(np.unique(groups)) < MIN_GROUPS:
        raise DataError(f"{data}: fewer than {MIN_GROUPS} groups of photos say too little of each other. Add photos.")
    brands, labels = np.unique([photo.brand for _, photo in photos], return_inverse=True)
    shares = suspects.probabilities(features_of(model_dir, photos), labels, groups)
    margins = suspects.margins(shares, labels)
    found = []
    for place in np.argsort(margins, kind="stable")[:number].tolist():
        if margins[place] < 0:
            read, photo = photos[place]
            best = int(shares[place].argmax())
            answer = str(brands[best]), float(shares[place, best])
            found.append((Candidate(photo.uri, photo.sha256, photo.brand, *answer, CONTRADICTED), read()))
    return found


def photos_of(data: str | os.PathLike[str], dataset: manifest.Manifest) -> Iterator[Photo]:
    """All photos of a records folder, split by split."""
    for split, content in dataset.splits.items():
        if content.num_examples:
            reader = RecordReader(data, split)
            rows = catalogue.of_shards(data, [shard.name for shard in content.shards])
            for number, row in enumerate(rows):
                yield functools.partial(_encoded, reader, number), row


def _encoded(reader: RecordReader, number: int) -> bytes:
    return bytes(records.parse_bytes(reader.read(number), "image/encoded"))


def features_of(model_dir: str | os.PathLike[str], photos: Sequence[Photo]) -> NDArray[np.floating]:
    """What the model's head sees of each photo, [N, F]."""
    from carbrand.evaluation import trained  # here and not at the top: TensorFlow takes seconds, and a log needs none
    from carbrand.serving import graph, parity

    model = trained.load(None, model_dir)
    network = graph.network_of(model.make_model())
    parts = []
    for start in tqdm.trange(0, len(photos), _BATCH, unit="batch", desc="review"):
        encoded = [read() for read, _ in photos[start : start + _BATCH]]
        parts.append(graph.features(network, parity.network_inputs(model.preprocess, encoded)))
    return np.concatenate(parts)


def _row(candidate: Candidate) -> dict[str, str]:
    """As it stands in the table; the brand is for a person to fill in."""
    fields = dataclasses.asdict(candidate)
    return {"path": fields.pop("path"), "brand": "", **fields, "probability": f"{candidate.probability:.3f}"}


def _table(candidates: Sequence[Candidate]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_row, candidates))
    return text.getvalue()
