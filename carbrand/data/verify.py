"""A records folder -> every byte that is not as it was written, and every photo or group that leaked across splits."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tqdm

from carbrand import errors
from carbrand.data import catalogue, leakage, manifest, records, verify_shard
from carbrand.data.verify_shard import Problem, Scan

MAX_SHOWN = 20  # problems on the terminal
MAX_LEAKS = 1000  # that are described one by one


@dataclasses.dataclass(frozen=True)
class Task:
    """One piece of the work: a shard with its catalogue, or another file (then `split` is "")."""

    file: str
    split: str = ""
    number: int = 0
    bytes: int = 0


def run(folder: str | os.PathLike[str]) -> list[Problem]:
    """Reads every byte of a records folder, in this process; it takes about 170 bytes of memory per photo.

    Returns:
        All problems, sorted by file and record; none if the folder is as it was written.

    Raises:
        DataError: if `folder` is no complete records folder.
    """
    folder = pathlib.Path(folder)
    built = load(folder)
    if isinstance(built, Problem):
        return [built]
    work = list(tasks(built))
    problems = check_folder(folder, built)
    keys = [np.zeros(0, leakage.KEY_DTYPE)]
    # disable=None: no bar where stderr is no terminal.
    with tqdm.tqdm(
        total=sum(task.bytes for task in work), unit="B", unit_scale=True, desc="verify", disable=None
    ) as bar:
        for task in work:
            scan = perform(folder, built, task)
            problems += scan.problems
            keys.append(scan.keys)
            bar.update(task.bytes)
    problems += describe_leaks(folder, built, leakage.find(np.concatenate(keys)))
    return in_order(problems)


def check_quickly(folder: str | os.PathLike[str], max_hash_bytes: int = 2**30) -> None:
    """Checks what takes seconds: the size of every shard, and the hash of the indexes and of the first shards.

    Args:
        folder: of records.
        max_hash_bytes: how much of the shards is read at most: whole shards, in turn from each split.

    Raises:
        DataError: with the first problem.
    """
    for problem in quick_problems(folder, max_hash_bytes):
        raise errors.DataError(problem)


def quick_problems(folder: str | os.PathLike[str], max_hash_bytes: int = 2**30) -> Iterator[str]:
    """What `check_quickly` looks for: one line for each file with a problem."""
    folder = pathlib.Path(folder)
    told = set()
    for problem in _quick_problems(folder, manifest.load(folder), max_hash_bytes):
        if problem.file not in told:
            told.add(problem.file)
            yield (
                f"{folder / problem.file}: {problem.what}. Restore the file, or build again; "
                f"`carbrand verify {folder}` finds every damaged record."
            )


def report(folder: str | os.PathLike[str], problems: list[Problem], seconds: float) -> None:
    """Prints the outcome of `run`, which took `seconds`.

    Raises:
        GateError: if there are problems.
    """
    for problem in problems[:MAX_SHOWN]:
        print(problem)
    if len(problems) > MAX_SHOWN:
        print(f"… and {len(problems) - MAX_SHOWN} more")
    if problems:
        num_files = len({problem.file for problem in problems})
        raise errors.GateError(
            f"{folder}: {_counted(len(problems), 'problem')} in {_counted(num_files, 'file')}. "
            "Restore what is damaged, or build again."
        )
    built = manifest.load(folder)
    num_photos = sum(part.num_examples for part in built.splits.values())
    num_shards = sum(len(part.shards) for part in built.splits.values())
    num_bytes = sum(shard.bytes for part in built.splits.values() for shard in part.shards)
    print(
        f"{folder}: OK, {num_photos} photos in {_counted(num_shards, 'shard')}, {num_bytes / 2**20:.1f} MiB, "
        f"{seconds:.1f} s, fingerprint {built.fingerprint[:12]}"
    )


def load(folder: pathlib.Path) -> manifest.Manifest | Problem:
    """The manifest of `folder`, or the problem that it is damaged.

    Raises:
        DataError: if there is no manifest.
    """
    try:
        return manifest.load(folder)
    except errors.DataError as error:
        if not (folder / manifest.FILE_NAME).exists():
            raise
        return Problem(manifest.FILE_NAME, str(error).partition(f"{manifest.FILE_NAME}: ")[2].rstrip("."))


def tasks(built: manifest.Manifest) -> Iterator[Task]:
    """All work that can be done piece by piece; the catalogue's files come with the shards."""
    catalogues = set()
    for split, part in built.splits.items():
        for number, shard in enumerate(part.shards):
            yield Task(shard.name, split, number, shard.bytes)
            catalogues.add(catalogue.name_of(shard.name))
    others = built.files.keys() | set(map(manifest.index_name, built.splits))
    yield from (Task(name) for name in sorted(others - catalogues))


def perform(folder: pathlib.Path, built: manifest.Manifest, task: Task) -> Scan:
    """Checks what `task` names."""
    if task.split:
        return verify_shard.scan(folder, built, task.split, task.number)
    problems = verify_shard.check_file(folder, task.file, built.files.get(task.file))
    for split in built.splits:
        if task.file == manifest.index_name(split) and not problems:
            problems = _check_index(folder, built, split)
    return Scan(problems, np.zeros(0, leakage.KEY_DTYPE))


def check_folder(folder: pathlib.Path, built: manifest.Manifest) -> list[Problem]:
    """What concerns no file alone: that the counts of the manifest agree, and that there are no other shards."""
    problems = []
    text = (folder / manifest.FILE_NAME).read_bytes().decode()  # with the ends of lines as they are
    if text != json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n":
        problems.append(Problem(manifest.FILE_NAME, "was reformatted since it was written"))
    num_records = sum(part.num_examples for part in built.splits.values())
    if built.counts["kept"] != num_records:
        what = f"says that {built.counts['kept']} photos were kept, its shards hold {num_records}"
        problems.append(Problem(manifest.FILE_NAME, what))
    known = built.files.keys() | {shard.name for part in built.splits.values() for shard in part.shards}
    found = {path.name for pattern in ("carbrand-*.tfrecord-*", "photos-*.jsonl") for path in folder.glob(pattern)}
    return problems + [Problem(name, "is no part of this dataset") for name in sorted(found - known)]


def describe_leaks(folder: pathlib.Path, built: manifest.Manifest, pairs: np.ndarray) -> list[Problem]:
    """A problem for each of `pairs` from `leakage.find`, up to `MAX_LEAKS`; the last one counts the rest."""
    problems = [_leak(folder, built, *pair) for pair in pairs[:MAX_LEAKS]]
    if len(pairs) > MAX_LEAKS:
        rest = f"{problems[-1].what}; and so on for {len(pairs) - MAX_LEAKS} more"
        problems[-1] = dataclasses.replace(problems[-1], what=rest)
    return problems


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sorted by file, then by record."""
    return sorted(
        problems, key=lambda problem: (problem.file, problem.record is not None, problem.record or 0, problem.what)
    )


def _quick_problems(folder: pathlib.Path, built: manifest.Manifest, max_hash_bytes: int) -> Iterator[Problem]:
    shards = [shard for part in built.splits.values() for shard in part.shards]
    for shard in shards:
        yield from _check_size(folder, shard)
    for name in map(manifest.index_name, built.splits):
        yield from verify_shard.check_file(folder, name, built.files.get(name))
    turn = {shard.name: place for part in built.splits.values() for place, shard in enumerate(part.shards)}
    for shard in sorted(shards, key=lambda shard: turn[shard.name]):
        max_hash_bytes -= shard.bytes
        if max_hash_bytes < 0:
            return
        yield from verify_shard.check_file(folder, shard.name, shard.sha256)


def _check_size(folder: pathlib.Path, shard: manifest.Shard) -> Iterator[Problem]:
    try:
        size = (folder / shard.name).stat().st_size
    except OSError as error:
        yield verify_shard.unreadable(shard.name, error)
    else:
        if size != shard.bytes:
            yield Problem(shard.name, f"has {size} bytes instead of {shard.bytes}")


def _check_index(folder: pathlib.Path, built: manifest.Manifest, split: str) -> list[Problem]:
    """That each shard's rows fit the shard, and that the labels are as many of each brand as the manifest says."""
    name = manifest.index_name(split)
    counts = np.zeros(len(built.brands), np.int64)
    first = 0
    for number, shard in enumerate(built.splits[split].shards):
        rows = verify_shard.index_rows(folder, built, split, number, first)
        if rows is None:
            return [Problem(name, f"its rows for {shard.name} do not fit that shard")]
        if not ((rows["label"] >= 0) & (rows["label"] < len(counts))).all():
            return [Problem(name, f"a label for {shard.name} lies outside 0 to {len(counts) - 1}")]
        counts += np.bincount(rows["label"], minlength=len(counts))
        first += shard.records
    is_right = tuple(counts.tolist()) == built.splits[split].brand_counts
    return [] if is_right else [Problem(name, "its photos per brand are not those of the manifest")]


def _leak(folder: pathlib.Path, built: manifest.Manifest, after: np.void, before: np.void) -> Problem:
    file, record, photo = _place(folder, built, after)
    other_file, other_record, other_photo = _place(folder, built, before)
    relation = "is of the same group as" if after["is_group"] else "is the same photo as"
    other = f"record {other_record} of {other_file}" + (f" ({other_photo})" if other_photo else "")
    return Problem(file, f"{relation} {other}", record, photo=photo)


def _place(folder: pathlib.Path, built: manifest.Manifest, key: np.void) -> tuple[str, int, str]:
    """The shard, the record's number in it, and its photo's name, or "" where the index is damaged."""
    split, number, record = manifest.SPLITS[key["split"]], int(key["shard"]), int(key["record"])
    shard = built.splits[split].shards[number]
    rows = verify_shard.index_rows(folder, built, split, number)
    if rows is None:
        return shard.name, record, ""
    with (folder / shard.name).open("rb") as file:
        payload = records.read(file.fileno(), int(rows["offset"][record]), int(rows["length"][record]))
    name = records.parse(payload)["image/filename"]
    assert isinstance(name, bytes)
    return shard.name, record, name.decode()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
