"""The build: a folder of photos by brand -> a records folder. Checks, normalises, drops copies, splits and shards.

Only metadata passes between the steps. Pixels wait in a cache on disk, from which a build that was stopped goes on, so
all workers need to share that disk. What the pipeline found reaches this process in files, not in metrics.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tqdm

from beam_jobs import build_output, runners, sharded_writer
from carbrand import errors, files
from carbrand.data import cache, duplicates, images, manifest, records, sources, splits

beam = runners.beam  # not imported here: runners keeps it quiet

Row = tuple[str, dict[str, Any]]  # what the last step collects: a kind of row, and the row


@dataclasses.dataclass(frozen=True)
class Checked:
    """A photo after checking: where its cache entry is, and either its pixels' hash or why it is rejected."""

    photo: sources.Photo
    sha256: str
    cache_key: str
    rejection: cache.Rejection | None = None
    pixel_hash: str = ""
    num_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The outcome for all files with equal pixels."""

    kept: Checked | None
    redundant: list[duplicates.Copy]
    conflicts: list[duplicates.Copy]


def run(
    input_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    num_shards: int | None = None,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    resize_short_px: int | None = 256,
    jpeg_quality: int = 95,
    max_reject_fraction: float = 0.1,
    workers: int | None = None,
    beam_args: Sequence[str] = (),
    overwrite: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    command: str = "",
) -> manifest.Manifest:
    """Builds a records folder; when a build was stopped in `output_dir`, goes on with it.

    Args:
        input_dir: holds one folder of photos per brand.
        output_dir: for the records.
        num_shards: of train, the other splits in proportion; by default about one per 128 MiB.
        fractions: of train, validation and test.
        seed: of the splits and of the order of the records.
        resize_short_px: shrink the short side of photos to this, in pixels; None keeps their size.
        jpeg_quality: of photos that have to be encoded again, 1 to 95.
        max_reject_fraction: of all files; when more cannot be used, the build fails.
        workers: processes on this machine; by default 1 for few photos, otherwise one per core.
        beam_args: options for Apache Beam, for example another runner.
        overwrite: replace a complete dataset in `output_dir`.
        cache_dir: keeps checked photos for later builds; by default they are deleted when the build is complete.
        command: as the user typed it, for the manifest.

    Raises:
        ConfigError: if an argument cannot work, or `output_dir` already holds a complete dataset.
        DataError: if `input_dir` holds no photos of two brands, or a brand ends up with none.
        BuildError: if the disk is full, a photo cannot be read, or a worker was killed.
        GateError: if more than `max_reject_fraction` of the files are rejected.
    """
    _check_numbers(num_shards, resize_short_px, jpeg_quality, max_reject_fraction)
    splits.check_fractions(fractions)
    input_path, output_path = pathlib.Path(input_dir).absolute(), pathlib.Path(output_dir).absolute()
    _check_folders(input_path, output_path, overwrite=overwrite)
    photos = sources.list_folder(input_path)
    options = runners.make_options(len(photos), workers=workers, beam_args=beam_args)
    settings = build_output.Settings(
        output_dir=str(output_path),
        cache_dir=str(pathlib.Path(cache_dir or output_path / build_output.WORK_FOLDER / "cache").absolute()),
        brands=tuple(sorted({photo.brand for photo in photos})),
        num_shards=num_shards,
        fractions=fractions,
        seed=seed,
        resize_short_px=resize_short_px,
        jpeg_quality=jpeg_quality,
    )
    with build_output.locked(settings), runners.disk_full_is_an_error(settings.output_dir):
        build_output.remove_old_output(settings)
        with _progress_bar(settings, len(photos)):
            runners.run(functools.partial(build_pipeline, photos, settings), options, folder=settings.work_dir)
        built = build_output.finish(settings, len(photos), max_reject_fraction, command)
    print(build_output.summary(built, settings.output_dir))
    return built


def build_pipeline(photos: list[sources.Photo], settings: build_output.Settings, pipeline: beam.Pipeline) -> None:
    """Applies the steps of the build to `pipeline`. One leaf, and tags nowhere: some runners drop the others."""
    checked = (
        pipeline
        | "Photos" >> beam.Create(photos)  # Photo
        | "SpreadOverWorkers" >> beam.Reshuffle()  # Photo
        | "Check" >> beam.Map(check, settings)  # Checked
    )
    chosen = (
        checked
        | "WithPixelHash" >> beam.FlatMap(_with_pixel_hash)  # (pixel hash, Checked)
        | "GroupCopies" >> beam.GroupByKey()  # (pixel hash, [Checked])
        | "Choose" >> beam.Map(choose)  # Chosen
    )
    shards = (
        chosen
        | "WithBrand" >> beam.FlatMap(_with_brand)  # (brand, Checked)
        | "GroupBrand" >> beam.GroupByKey()  # (brand, [Checked])
        | "Split" >> beam.FlatMap(split, settings)  # sharded_writer.Record
        | "WriteShards"
        >> sharded_writer.WriteShards(
            settings.output_dir,
            settings.index_dir,
            functools.partial(encode, settings),
            seed=settings.seed,
            num_train_shards=settings.num_shards,
        )  # sharded_writer.WrittenShard
    )
    rows = (
        checked | "RejectRows" >> beam.FlatMap(_reject_rows),  # Row
        chosen | "CopyRows" >> beam.FlatMap(_copy_rows),  # Row
        shards | "ShardRows" >> beam.Map(_shard_row),  # Row
    )
    _ = (
        rows
        | "AllRows" >> beam.Flatten()  # Row
        | "WithOneKey" >> beam.Map(_with_one_key)  # ("", Row)
        | "GroupRows" >> beam.GroupByKey()  # ("", [Row])
        | "WriteReport" >> beam.Map(_write_report, settings.work_dir)  # None
    )


def check(photo: sources.Photo, settings: build_output.Settings) -> Checked:
    """Reads, checks and normalises one photo, or finds the outcome in the cache; the pixels stay in the cache.

    Raises:
        BuildError: if the file cannot be read: that says nothing about the photo, so it is not rejected.
    """
    content = _read(photo)
    sha256 = files.sha256(content)
    key = images.cache_key(sha256, resize_short_px=settings.resize_short_px, jpeg_quality=settings.jpeg_quality)
    entry = cache.load(settings.cache_dir, key)
    if entry is None:
        entry = _normalise(content, settings)
        cache.store(settings.cache_dir, key, entry)
    _count_one(settings)
    if isinstance(entry, cache.Rejection):
        return Checked(photo, sha256, key, rejection=entry)
    return Checked(photo, sha256, key, pixel_hash=entry.pixel_hash, num_bytes=len(entry.encoded))


def choose(element: tuple[str, Iterable[Checked]]) -> Chosen:
    """(pixel hash, files with equal pixels) -> which to keep."""
    by_name = {checked.photo.name: checked for checked in element[1]}
    copies = [duplicates.Copy(item.sha256, name, item.photo.brand) for name, item in by_name.items()]
    kept, redundant, conflicts = duplicates.choose(copies)
    return Chosen(by_name[kept.name] if kept else None, redundant, conflicts)


def split(element: tuple[str, Iterable[Checked]], settings: build_output.Settings) -> Iterator[sharded_writer.Record]:
    """(brand, its photos) -> records with their split and label."""
    brand, photos = element
    by_key = {checked.sha256: checked for checked in photos}
    label = settings.brands.index(brand)
    # The key is the hash of the file, not of the pixels: builds with other sizes have the same splits.
    for key, name in splits.assign(by_key, settings.fractions, settings.seed).items():
        yield sharded_writer.Record(name, key, label, by_key[key].num_bytes, by_key[key])


def encode(settings: build_output.Settings, record: sharded_writer.Record) -> bytes:
    """The payload of `record`, with its pixels from the cache.

    Raises:
        BuildError: if the cache entry is gone.
    """
    checked = record.source
    assert isinstance(checked, Checked)
    entry = cache.load(settings.cache_dir, checked.cache_key)
    if not isinstance(entry, images.NormalisedImage):
        raise errors.BuildError(
            f"{settings.cache_dir}: the cached copy of {checked.photo.name} is gone or damaged. "
            "Run the same command again."
        )
    return records.encode(
        {
            "image/class/label": record.label,
            "image/class/text": checked.photo.brand.encode(),
            "image/encoded": entry.encoded,
            "image/filename": checked.photo.name.encode(),
            "image/height": entry.height,
            "image/key/sha256": checked.sha256.encode(),
            "image/width": entry.width,
        }
    )


def _check_numbers(
    num_shards: int | None, resize_short_px: int | None, jpeg_quality: int, max_reject_fraction: float
) -> None:
    if num_shards is not None and num_shards < 1:
        raise errors.ConfigError(f"--num_shards={num_shards}: must be at least 1.")
    if resize_short_px is not None and resize_short_px < images.MIN_SIDE_PX:
        raise errors.ConfigError(f"--resize_short={resize_short_px}: must be at least {images.MIN_SIDE_PX} pixels.")
    if not 1 <= jpeg_quality <= 95:
        raise errors.ConfigError(f"jpeg_quality={jpeg_quality}: must lie between 1 and 95.")
    if not 0 <= max_reject_fraction <= 1:
        raise errors.ConfigError(f"--max_reject_fraction={max_reject_fraction}: must lie between 0 and 1.")


def _check_folders(input_path: pathlib.Path, output_path: pathlib.Path, *, overwrite: bool) -> None:
    if output_path.is_relative_to(input_path):
        raise errors.ConfigError(
            f"--output={output_path}: lies in the input folder {input_path}, where the next build would take it for "
            "photos. Choose a folder outside."
        )
    if output_path.exists() and not output_path.is_dir():
        raise errors.ConfigError(f"--output={output_path}: is a file. Name a folder.")
    if (output_path / manifest.FILE_NAME).exists() and not overwrite:
        raise errors.ConfigError(
            f"--output={output_path}: already holds a complete dataset. Choose another folder, or add --overwrite."
        )


@contextlib.contextmanager
def _progress_bar(settings: build_output.Settings, num_photos: int) -> Iterator[None]:
    """Shows photos per second on a terminal, from the file to which every worker appends one byte per photo."""
    path = pathlib.Path(settings.work_dir, build_output.PROGRESS)
    path.touch()
    ended = threading.Event()
    # disable=None: no bar where stderr is no terminal.
    with tqdm.tqdm(total=num_photos, unit=" photos", desc="build", disable=None) as bar:
        thread = threading.Thread(target=_follow, args=(path, bar, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _follow(path: pathlib.Path, bar: tqdm.tqdm, ended: threading.Event) -> None:
    is_last = False
    while not is_last:
        is_last = ended.wait(timeout=0.5)
        bar.update(min(path.stat().st_size, bar.total or 0) - bar.n)


def _count_one(settings: build_output.Settings) -> None:
    descriptor = os.open(pathlib.Path(settings.work_dir, build_output.PROGRESS), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)


def _read(photo: sources.Photo) -> bytes:
    """The file, but no more of it than `_normalise` needs to see that it is too large."""
    try:
        with pathlib.Path(photo.uri).open("rb") as file:
            return file.read(images.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise errors.BuildError(
            f"{photo.name}: cannot be read ({error.strerror}). Make it readable or remove it, then run the same "
            "command again; what was done is kept in the cache."
        ) from error


def _normalise(content: bytes, settings: build_output.Settings) -> cache.Entry:
    try:
        return images.normalise(content, resize_short_px=settings.resize_short_px, jpeg_quality=settings.jpeg_quality)
    except images.Rejected as rejected:
        return cache.Rejection(rejected.reason, rejected.detail)


def _with_pixel_hash(checked: Checked) -> Iterator[tuple[str, Checked]]:
    if checked.rejection is None:
        yield checked.pixel_hash, checked


def _with_brand(chosen: Chosen) -> Iterator[tuple[str, Checked]]:
    if chosen.kept is not None:
        yield chosen.kept.photo.brand, chosen.kept


def _reject_rows(checked: Checked) -> Iterator[Row]:
    if checked.rejection is not None:
        yield "rejected", {"name": checked.photo.name, **dataclasses.asdict(checked.rejection)}


def _copy_rows(chosen: Chosen) -> Iterator[Row]:
    for copy in chosen.redundant:
        assert chosen.kept is not None
        yield "duplicate", {"name": copy.name, "kept": chosen.kept.photo.name}
    for copy in chosen.conflicts:
        others = sorted({other.brand for other in chosen.conflicts} - {copy.brand})
        yield "conflict", {"name": copy.name, "brand": copy.brand, "other_brands": others}


def _shard_row(written: sharded_writer.WrittenShard) -> Row:
    return "shard", dataclasses.asdict(written)


def _with_one_key(row: Row) -> tuple[str, Row]:
    return "", row


def _write_report(element: tuple[str, Iterable[Row]], work_dir: str) -> None:
    report = collections.defaultdict(list)
    for kind, row in element[1]:
        report[kind].append(row)
    files.write_json(pathlib.Path(work_dir, build_output.REPORT), report)
