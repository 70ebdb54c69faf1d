"""The settings of a build, and its output folder: what lies where while it runs."""

import contextlib
import dataclasses
import pathlib
import re
import shutil
from collections.abc import Iterator

from carbrand import checks, files
from carbrand.data import duplicates, images, manifest, splits

WORK_FOLDER = ".carbrand-build"  # in the output folder, until the build is complete
_MAX_PHOTOS_PER_PART = 50_000  # 500 MB
_SHARD_BYTES = 128 * 2**20  # about; large enough for sequential reads, small enough to spread over workers

_NUMBER = r"\d{5,}-of-\d{5,}"
_SPLIT = f"({'|'.join(manifest.SPLITS)})"
_OUTPUT = re.compile(
    rf"carbrand-{_SPLIT}\.tfrecord-{_NUMBER}|photos-{_SPLIT}-{_NUMBER}\.jsonl|index-{_SPLIT}\.npy|\..*\.tmp"
)
GROUP_BY = ("group", "model", "none")


@dataclasses.dataclass(frozen=True)
class Choices:
    """What decides on the content of a dataset; a dataset that is appended to keeps its own.

    Attributes:
        fractions: of train, validation and test.
        seed: of the splits and of the order of the records.
        resize_short_px: shrink the short side of photos to this, in pixels; None keeps their size.
        jpeg_quality: of photos that have to be encoded again, 1 to 95.
        near_duplicates: "keep_one"; "keep_group": keep all, in one split; or "off": do not look for them.
        conflicts: photos under several brands: "keep_out" or "keep".
        group_by: the column whose photos stay in one split: "group", "model" or "none".
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    resize_short_px: int | None = 256
    jpeg_quality: int = 95
    near_duplicates: str = "keep_one"
    conflicts: str = "keep_out"
    group_by: str = "group"

    def __post_init__(self) -> None:
        splits.check_fractions(self.fractions)
        checks.number("--seed", self.seed, whole=True)
        if self.resize_short_px is not None:
            checks.number("--resize_short", self.resize_short_px, at_least=images.MIN_SIDE_PX, whole=True)
        checks.number("--jpeg_quality", self.jpeg_quality, at_least=1, at_most=95, whole=True)
        checks.choice("--group_by", self.group_by, GROUP_BY)
        duplicates.Policy(self.near_duplicates, self.conflicts)

    @property
    def policy(self) -> duplicates.Policy:
        """What to do with copies."""
        return duplicates.Policy(self.near_duplicates, self.conflicts)

    @property
    def command(self) -> str:
        """The options of `carbrand build` that stand for these choices."""
        fractions = ",".join(f"{fraction:g}" for fraction in self.fractions)
        return (
            f"--split {fractions} --seed {self.seed} --resize_short {self.resize_short_px or 0} "
            f"--jpeg_quality {self.jpeg_quality} --near_duplicates {self.near_duplicates} "
            f"--conflicts {self.conflicts} --group_by {self.group_by}"
        )

    @classmethod
    def of(cls, dataset: manifest.Manifest) -> "Choices":
        """Those with which `dataset` was built."""
        return cls(**{field.name: getattr(dataset, field.name) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Sizing:
    """How many shards to make.

    Attributes:
        num_train_shards: exactly so many for train (but no more than it has records), as many in proportion for the
            others; None: by size.
        shard_bytes: about, per shard.
        num_readers: that will read at once; each gets at least two shards of train.
    """

    num_train_shards: int | None = None
    shard_bytes: int = _SHARD_BYTES
    num_readers: int = 1

    @property
    def command(self) -> str:
        """The options of `carbrand build` that stand for this, but for defaults."""
        options = [f"--num_shards {self.num_train_shards}"] if self.num_train_shards is not None else []
        options += [f"--shard_mib {self.shard_bytes // 2**20}"] if self.shard_bytes != _SHARD_BYTES else []
        options += [f"--readers {self.num_readers}"] if self.num_readers != 1 else []
        return "".join(f" {option}" for option in options)

    def num_shards(self, sizes: dict[str, int], num_bytes: dict[str, int]) -> dict[str, int]:
        """How many shards each split gets: at least one, and at most one per record.

        Args:
            sizes: records per split, none of them 0.
            num_bytes: per split.
        """
        num_train = sizes.get("train", max(sizes.values()))
        if self.num_train_shards is None:
            wanted = {split: round(num_bytes[split] / self.shard_bytes) for split in sizes}
            if "train" in wanted:
                wanted["train"] = max(wanted["train"], 2 * self.num_readers)
        else:
            wanted = {split: round(self.num_train_shards * size / num_train) for split, size in sizes.items()}
        return {split: min(max(wanted[split], 1), size) for split, size in sizes.items()}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the steps of a build need to know; see `build_dataset.run`.

    Attributes:
        output_dir: for the dataset; within `work_dir` if it is to replace one, which stays as it is until then.
        work_dir: for everything that a complete dataset does not need.
        cache_dir: for checked photos.
        root: of the source; see `sources.Listing`.
        brands: in the order of their labels.
        aliases: other names of brands.
        given_splits: that the source names.
        has_groups: whether photos have groups besides those of copies.
        num_photos: the old ones included.
        choices: what decides on the content.
        sizing: of the shards.
    """

    output_dir: str
    work_dir: str
    cache_dir: str
    root: str
    brands: tuple[str, ...]
    aliases: dict[str, str]
    given_splits: tuple[str, ...]
    has_groups: bool
    num_photos: int
    choices: Choices
    sizing: Sizing

    @property
    def index_dir(self) -> str:
        """For the parts of the index, one file per shard."""
        return f"{self.work_dir}/index"

    @property
    def ahead_dir(self) -> str:
        """For what is known of photos before the pipeline runs; see `checking.check_ahead`."""
        return f"{self.work_dir}/ahead"

    @property
    def shuffle_dir(self) -> str:
        """For rows that wait for their group; see `packed`."""
        return f"{self.work_dir}/shuffle"

    # Each pack is in memory by itself, at about 10 kB per photo, while Beam holds about 1 kB in each process for every
    # pair of packs between which rows pass. So both grow with the number of photos to the power of 2/3.
    @property
    def photos_per_pack(self) -> int:
        """How many photos are checked at a time; few enough that all workers end at about the same time."""
        return max(32, round(0.14 * self.num_photos ** (2 / 3)))

    @property
    def num_parts(self) -> int:
        """Into how many packs photos are grouped."""
        return max(16, round(0.7 * self.num_photos ** (1 / 3)), self.num_photos // _MAX_PHOTOS_PER_PART)

    @property
    def report_dir(self) -> str:
        """For what the pipeline reports."""
        return f"{self.work_dir}/report"

    @property
    def spool_dir(self) -> pathlib.Path:
        """For photos that have no files of their own."""
        return pathlib.Path(self.work_dir, "spool")

    @property
    def progress_path(self) -> str:
        """The file to which each step appends one byte per photo."""
        return f"{self.work_dir}/progress"

    @property
    def split_rule(self) -> splits.Rule:
        """How groups are assigned to splits."""
        return splits.Rule(self.choices.fractions, self.choices.seed, self.given_splits)


def is_ours(output_dir: pathlib.Path) -> bool:
    """Whether a build may write there: the folder is new or empty, a dataset, or what a stopped build left."""
    if not output_dir.exists() or not any(output_dir.iterdir()):
        return True
    return (output_dir / manifest.FILE_NAME).exists() or (output_dir / WORK_FOLDER / "lock").exists()


@contextlib.contextmanager
def locked(output_dir: pathlib.Path) -> Iterator[None]:
    """Makes the work folder, and keeps a second build out of it; the lock ends with this process at the latest."""
    work_dir = output_dir / WORK_FOLDER
    work_dir.mkdir(parents=True, exist_ok=True)
    with files.locked(work_dir / "lock", f"--output={output_dir}: another build is writing here."):
        yield


def remove_old_output(settings: Settings) -> None:
    """Removes what a stopped build left, except the cache; the manifest first, so that nothing half looks complete."""
    output = pathlib.Path(settings.output_dir)
    output.mkdir(exist_ok=True)
    _remove_dataset(output)
    for folder in (settings.ahead_dir, settings.index_dir, settings.report_dir, settings.shuffle_dir):
        shutil.rmtree(folder, ignore_errors=True)
    pathlib.Path(settings.progress_path).unlink(missing_ok=True)


def put_into_place(settings: Settings) -> None:
    """Moves a complete dataset from where it was built to where it belongs, and removes the work folder."""
    built, place = pathlib.Path(settings.output_dir), pathlib.Path(settings.work_dir).parent
    if built != place:
        _remove_dataset(place)
        for path in sorted(built.iterdir(), key=lambda path: path.name == manifest.FILE_NAME):
            path.replace(place / path.name)
    files.remove_tree(settings.work_dir)


def _remove_dataset(folder: pathlib.Path) -> None:
    (folder / manifest.FILE_NAME).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _OUTPUT.fullmatch(path.name):
            path.unlink()
