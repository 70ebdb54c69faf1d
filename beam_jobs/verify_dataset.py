"""The verification of a records folder with its shards in parallel: the same problems as `verify.run` finds.

The folder has to be on a disk that all workers share, and problems reach this process in files, not in metrics.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np

from beam_jobs import packed, report, runners, write_rows
from carbrand import errors, files
from carbrand.data import leakage, manifest, verify
from carbrand.data.verify_shard import Problem, Scan

beam = runners.beam  # not imported here: runners keeps it quiet

PHOTOS_PER_BUCKET = 500_000  # of the leakage gate; about 90 MB while one is checked
_PREFIX, _LOCK = ".verify-", "lock"  # of temporary folders


def run(
    folder: str | os.PathLike[str], *, workers: int | None = None, beam_args: Sequence[str] = ()
) -> list[verify.Problem]:
    """Reads every byte of a records folder, and writes a temporary folder into it.

    Args:
        folder: of records.
        workers: processes on this machine; by default 1 for few photos, otherwise one per core.
        beam_args: options for Apache Beam, for example another runner.

    Returns:
        All problems, sorted by file and record; none if the folder is as it was written.

    Raises:
        DataError: if `folder` is no complete records folder.
        ConfigError: if an option cannot work, or `folder` cannot be written to.
    """
    folder = pathlib.Path(folder).absolute()
    built = verify.load(folder)
    if isinstance(built, Problem):
        return [built]
    num_photos = sum(part.num_examples for part in built.splits.values())
    options = runners.make_options(num_photos, workers=workers, beam_args=beam_args)
    with _temporary_folder(folder) as work_dir, files.locked(f"{work_dir}/{_LOCK}", f"{work_dir}: is taken."):
        build = functools.partial(build_pipeline, str(folder), built, work_dir)
        runners.run(build, options, folder=work_dir)
        found = [Problem(**row["problem"]) for row in report.read(work_dir, "problem")]
    return verify.in_order([*verify.check_folder(folder, built), *found])


def build_pipeline(folder: str, built: manifest.Manifest, work_dir: str, pipeline: beam.Pipeline) -> None:
    """Applies the steps to `pipeline`."""
    num_buckets = 1 + sum(part.num_examples for part in built.splits.values()) // PHOTOS_PER_BUCKET
    manifest_hash = files.sha256_of_file(pathlib.Path(folder, manifest.FILE_NAME))
    scans = (
        pipeline
        | "Tasks" >> beam.Create(list(verify.tasks(built)))  # Task
        | "SpreadOverWorkers" >> beam.Reshuffle()  # Task
        | "Perform" >> beam.Map(_perform, folder, manifest_hash)  # Scan
    )
    shuffle_dir = f"{work_dir}/shuffle"
    leaks = (
        scans
        | "Bucket" >> beam.Map(_buckets, num_buckets)  # Pack[(bucket, KEY_DTYPE as bytes)]
        | "GroupBucket" >> packed.GroupBytes(shuffle_dir)  # (bucket, [Slice])
        | "FindLeaks" >> beam.Map(_leaks, folder, manifest_hash)  # Pack[report.Row]
    )
    problems = scans | "Problems" >> beam.Map(_problems)  # Pack[report.Row]
    _ = (problems, leaks) | "WriteRows" >> write_rows.WriteRows(work_dir, shuffle_dir)


def _temporary_folder(folder: pathlib.Path) -> tempfile.TemporaryDirectory[str]:
    try:
        _remove_abandoned(folder)
        return tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX)
    except OSError as error:
        raise errors.ConfigError(
            f"{folder}: cannot be written to ({error.strerror}), which several workers need. Leave --workers and "
            "Beam's options out."
        ) from error


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Deletes the temporary folders of verifications that were killed: those whose lock is free."""
    for lock in folder.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(errors.ConfigError), files.locked(lock, f"{lock}: is taken."):
            shutil.rmtree(lock.parent)


@functools.lru_cache(maxsize=1)
def _manifest(folder: str, manifest_hash: str) -> manifest.Manifest:
    """Read once by each worker: with thousands of shards it is too large to go along with every step."""
    built = manifest.load(folder)
    if files.sha256_of_file(pathlib.Path(folder, manifest.FILE_NAME)) != manifest_hash:
        raise errors.DataError(f"{folder}/{manifest.FILE_NAME}: changes while it is verified. Verify it again.")
    return built


def _perform(task: verify.Task, folder: str, manifest_hash: str) -> Scan:
    return verify.perform(pathlib.Path(folder), _manifest(folder, manifest_hash), task)


def _problems(scan: Scan) -> packed.Pack:
    return _rows(scan.problems)


def _buckets(scan: Scan, num_buckets: int) -> packed.Pack:
    return packed.Pack(leakage.by_bucket(scan.keys, num_buckets))


def _leaks(element: tuple[int, Iterable[packed.Slice]], folder: str, manifest_hash: str) -> packed.Pack:
    keys = np.frombuffer(packed.join(element[1]), leakage.KEY_DTYPE)
    found = verify.describe_leaks(pathlib.Path(folder), _manifest(folder, manifest_hash), leakage.find(keys))
    return _rows(found)


def _rows(problems: Iterable[Problem]) -> packed.Pack:
    return packed.Pack(
        report.row("problem", {"name": problem.file, "problem": dataclasses.asdict(problem)}) for problem in problems
    )
