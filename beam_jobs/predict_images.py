"""Predictions for very many photos, with RunInference: sharded JSONL or Parquet, in the order of the photos.

A shard is the unit of work: it is written whole as soon as its photos are predicted, and a job that was stopped or
killed goes on with the shards that are missing, or older than one of their photos. Workers have to share the disk of
the output.
"""

import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from beam_jobs import progress, remote, runners
from carbrand import checks, errors, exported, files
from carbrand.data import images, photo_paths
from carbrand.data.paths import shown
from carbrand.serving import predict
from carbrand.serving.predictor import Failure, Photo, Prediction, Predictor

from apache_beam.ml.inference import base as inference  # isort: skip  # after runners, which keeps Beam quiet

beam = runners.beam
# Where an optional part of Beam is missing, it takes this module for missing too, and warns of that for every model.
inference.resource = resource

FORMATS = ("jsonl", "parquet")
PHOTOS_PER_SHARD = 256  # what a kill costs, per worker: 10 s on two cores at 224 px
SUMMARY = "predictions.json"  # written last
_PHOTOS, _JOB, _PROGRESS, _LOCK = ".photos.jsonl", ".job.json", ".progress", ".lock"


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some of the photos: the bytes from `start` to `end` of the list of photos."""

    number: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Job:
    """What all workers know.

    Attributes:
        model: folder of one version.
        output: an absolute path.
        output_format: one of `FORMATS`.
        num_shards: in all.
    """

    model: str
    output: str
    output_format: str
    num_shards: int

    def path(self, shard: int) -> pathlib.Path:
        """Of a shard's predictions."""
        name = f"predictions-{shard:05d}-of-{self.num_shards:05d}.{self.output_format}"
        return pathlib.Path(self.output, name)


def run(
    model_dir: str | os.PathLike[str],
    paths: Sequence[str],
    output: str | os.PathLike[str],
    *,
    names_from: str | None = None,
    output_format: str = "jsonl",
    workers: int | None = None,
    beam_args: Sequence[str] = (),
    photos_per_shard: int = PHOTOS_PER_SHARD,
) -> tuple[int, int]:
    """Predicts files, folders and patterns, here or in a bucket, into the folder `output`.

    Args:
        model_dir: an exported model.
        paths: files, folders and patterns.
        output: a new folder, or that of the same job, which goes on.
        names_from: a list of more of them, see `photo_paths.read_list`.
        output_format: "jsonl" or "parquet".
        workers: processes on this machine; by default 1 for few photos, otherwise one per core.
        beam_args: options for Apache Beam, for example another runner.
        photos_per_shard: photos in each file but the last.

    Returns:
        The number of photos, and of those without a prediction.

    Raises:
        ConfigError: an option cannot work, or `output` holds another job or something else.
        DataError: there are no photos, or no such model.
    """
    checks.choice("--format", output_format, FORMATS)
    model = exported.find(model_dir).absolute()
    folder = pathlib.Path(output).absolute()
    _check_paths(paths, folder)
    remote.set_options(runners.make_options(1, workers=workers, beam_args=beam_args))  # listing needs them
    listed = photo_paths.read_list(names_from, remote.FILES) if names_from else ()
    names = photo_paths.expand(itertools.chain(paths, listed), remote.FILES)
    _check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / _LOCK, f"{output}: another job writes predictions into it."):
        num_photos, shards, fingerprint = _write_photos(folder / _PHOTOS, names, photos_per_shard)
        job = Job(str(model), str(folder), output_format, len(shards))
        facts = {**dataclasses.asdict(job), "model_fingerprint": exported.fingerprint(model)}
        facts |= {"photos": num_photos, "list": fingerprint}
        _begin(folder, facts, output)
        options = runners.make_options(num_photos, workers=workers, beam_args=beam_args)
        todo = [shard for shard in shards if not _is_done(job, shard)]
        done = num_photos - sum(1 for shard in todo for _ in _photos(job, shard))
        (folder / _PROGRESS).write_bytes(progress.CHECKED * done)
        with progress.shown(str(folder / _PROGRESS), num_photos, "predict"):
            runners.run(functools.partial(build_pipeline, job, todo), options, folder=str(folder))
        failures = sum(_num_failures(job, shard) for shard in shards)
        files.write_json(folder / SUMMARY, {**facts, "failures": failures})
    return num_photos, failures


def _check_paths(paths: Sequence[str], folder: pathlib.Path) -> None:
    if photo_paths.STDIN in paths:
        raise errors.ConfigError("-: a photo from stdin goes to no worker. Leave --workers and Beam's options out.")
    for path in paths:
        if pathlib.Path(path).is_dir() and folder.resolve().is_relative_to(pathlib.Path(path).resolve()):
            raise errors.ConfigError(
                f"--output={folder}: lies in {path}, where the next start would take it for photos. Choose a folder "
                "outside."
            )


def build_pipeline(job: Job, todo: Sequence[Shard], pipeline: beam.Pipeline) -> None:
    """Applies the steps to `pipeline`."""
    _ = (
        pipeline
        | "Shards" >> beam.Create(list(todo))  # Shard
        | "SpreadOverWorkers" >> beam.Reshuffle()  # Shard
        | "Predict" >> inference.RunInference(_PredictShard(job))  # (Shard, [row])
        | "Write" >> beam.MapTuple(functools.partial(_write, job))  # None
    )


class _PredictShard(inference.ModelHandler[Shard, tuple[Shard, list[dict[str, Any]]], Predictor]):
    """Shards in, shards with their rows out: a shard is several of the network's batches, always the same ones."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def load_model(self) -> Predictor:
        return Predictor(self._job.model)

    def run_inference(
        self, batch: Sequence[Shard], model: Predictor, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[tuple[Shard, list[dict[str, Any]]]]:
        for shard in batch:
            yield shard, list(self._rows(shard, model))

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": 1}

    def _rows(self, shard: Shard, model: Predictor) -> Iterator[dict[str, Any]]:
        to_fields = predict.flat if self._job.output_format == "parquet" else Predictor.fields
        names = list(_photos(self._job, shard))
        for name, result in predict.predicted(model, names, _read, self._note):
            yield {"path": shown(name), **to_fields(model, result)}

    def _note(self, results: Sequence[Prediction | Failure]) -> None:
        kinds = (progress.REJECTED if isinstance(result, Failure) else progress.CHECKED for result in results)
        with pathlib.Path(self._job.output, _PROGRESS).open("ab") as file:
            file.write(b"".join(kinds))


def _read(name: str) -> Photo:
    return remote.read(name, images.MAX_FILE_BYTES + 1) if remote.is_remote(name) else name


def _write_photos(path: pathlib.Path, names: Iterable[str], per_shard: int) -> tuple[int, list[Shard], str]:
    """Writes the list of photos: their number, their shards, and a hash of the list."""
    num_photos, position, starts = 0, 0, []
    with files.atomic_writer(path) as file:
        for num_photos, name in enumerate(names, start=1):
            if (num_photos - 1) % per_shard == 0:
                starts.append(position)
            position += file.write(json.dumps(name).encode() + b"\n")
    if not num_photos:
        raise errors.ConfigError("No photos are given. Name some, or give a list of them with --list.")
    ends = [*starts[1:], position]
    shards = [Shard(number, *place) for number, place in enumerate(zip(starts, ends, strict=True))]
    return num_photos, shards, files.sha256_of_file(path)


def _photos(job: Job, shard: Shard) -> Iterator[str]:
    with pathlib.Path(job.output, _PHOTOS).open("rb") as file:
        file.seek(shard.start)
        yield from map(json.loads, file.read(shard.end - shard.start).splitlines())


def _is_done(job: Job, shard: Shard) -> bool:
    """Whether a shard is written, and none of its photos on this machine changed since, or came to its place."""
    try:
        written_ns = job.path(shard.number).stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return all(_changed_ns(name) <= written_ns for name in _photos(job, shard))


def _changed_ns(name: str) -> int:
    """When a file, its name or its mode changed last; 0 of one that is not there, or in a bucket."""
    try:
        return pathlib.Path(name).stat().st_ctime_ns
    except (OSError, ValueError):
        return 0


def _check_output(folder: pathlib.Path) -> None:
    checks.folder("--output", folder)
    # A job that ends before its list of photos is complete leaves its lock, and perhaps a part of the list.
    leftovers = (_LOCK, f".{_PHOTOS}.")
    others = folder.exists() and any(not path.name.startswith(leftovers) for path in folder.iterdir())
    if others and not (folder / _JOB).exists() and not (folder / _PHOTOS).exists():
        raise errors.ConfigError(f"--output={folder}: holds something else than predictions. Give another folder.")


def _begin(folder: pathlib.Path, facts: dict[str, Any], output: object) -> None:
    """Notes what the job is; refuses to go on with another one."""
    path = folder / _JOB
    try:
        before = json.loads(path.read_text()) if path.exists() else facts
    except ValueError as error:
        raise errors.ConfigError(f"{path}: damaged ({error}). Give another folder as --output.") from error
    other = [name for name in facts if before.get(name) != facts[name]]
    if other:
        raise errors.ConfigError(
            f"--output={output}: holds predictions with {other[0]} {before.get(other[0])}, now {facts[other[0]]}. Give "
            "another folder."
        )
    files.write_json(path, facts)
    for leftover in folder.glob(".predictions-*.tmp"):  # of a job that was killed
        leftover.unlink()


def _write(job: Job, shard: Shard, rows: list[dict[str, Any]]) -> None:
    path = job.path(shard.number)
    if job.output_format == "jsonl":
        files.write_jsonl(path, rows)
        return
    import pyarrow
    import pyarrow.parquet

    types = {"path": "string", "brand": "string", "is_unknown": "bool", "error": "string"}
    schema = pyarrow.schema([(name, types.get(name, "float64")) for name in rows[0]])
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), content)
    files.write_bytes(path, content.getvalue())


def _num_failures(job: Job, shard: Shard) -> int:
    path = job.path(shard.number)
    if job.output_format == "jsonl":
        return sum("error" in row for row in files.read_jsonl(path))
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(path, columns=["error"])["error"]
    return len(column) - column.null_count
