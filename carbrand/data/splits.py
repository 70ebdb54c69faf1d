"""Groups of photos -> train, validation and test, by hash: a group stays in its split when others are added.

Only where a brand is so small that a split would miss its floor does a group change sides. Splits that the source gives
are kept.
"""

import dataclasses
import hashlib
import heapq
import math
from collections.abc import Collection, Iterable

from carbrand import errors
from carbrand.data import manifest

MIN_HELD_OUT_PER_BRAND = 2  # photos in validation and in test each; a guess: enough for a brand to show up at all


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Reads "0.8,0.1,0.1".

    Raises:
        ConfigError: if `text` is not three numbers, or `check_fractions` refuses them.
    """
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise errors.ConfigError(
            f"--split={text}: not three numbers. Give the fractions of train, validation and test, "
            "for example 0.8,0.1,0.1."
        ) from error
    check_fractions((train, validation, test))
    return train, validation, test


def check_fractions(fractions: tuple[float, float, float]) -> None:
    """Raises ConfigError unless `fractions` are in [0, 1], sum up to 1 and leave something to train on."""
    shown = ",".join(f"{fraction:g}" for fraction in fractions)
    if not all(0 <= fraction <= 1 for fraction in fractions) or fractions[0] == 0:
        raise errors.ConfigError(f"--split={shown}: fractions lie between 0 and 1, and train's is above 0.")
    if not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise errors.ConfigError(f"--split={shown}: sums up to {sum(fractions):g}. Make the fractions sum up to 1.")


@dataclasses.dataclass(frozen=True)
class Rule:
    """How groups are assigned: the arguments of the build, and the splits that the source's own column names.

    Photos of which the source says nothing, and those of its train where it lacks a held-out split, are shared out
    among train and the held-out splits that it does not name.
    """

    fractions: tuple[float, float, float]
    seed: int
    given_splits: tuple[str, ...] = ()

    def position(self, group: str) -> float:
        """A hash of `group` in [0, 1): test lies lowest, then validation, then train."""
        digest = hashlib.sha256(f"split:{self.seed}:{group}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float, so never 1.0

    def split_of(self, group: str) -> str:
        """The split of a group, unless the source fixes it."""
        train, validation, test = (
            0 if split in self.given_splits and split != "train" else fraction
            for split, fraction in zip(manifest.SPLITS, self.fractions, strict=True)
        )
        position = self.position(group) * (train + validation + test)
        if position < test:
            return "test"
        return "validation" if position < test + validation else "train"

    def is_fixed(self, given: str) -> bool:
        """Whether the source's word decides: it names a held-out split, or train and all of those that are wanted."""
        wanted = [split for split, fraction in zip(manifest.SPLITS, self.fractions, strict=True) if fraction]
        return given in ("validation", "test") or (given == "train" and set(wanted) <= set(self.given_splits))

    def allows(self, given: str, split: str) -> bool:
        """Whether a photo of which the source says `given`, or "", may go to `split`."""
        return not given or given == split or (not self.is_fixed(given) and split not in self.given_splits)

    def floors(self, num_photos: int) -> dict[str, int]:
        """The fewest photos of one brand in each split that the source does not give; they leave one to train on."""
        held_out = [
            split
            for split, fraction in zip(manifest.SPLITS[1:], self.fractions[1:], strict=True)
            if fraction and split not in self.given_splits
        ]
        floor = min(MIN_HELD_OUT_PER_BRAND, (num_photos - 1) // max(len(held_out), 1))
        return {"train": min(num_photos, 1), **dict.fromkeys(held_out, floor)}


@dataclasses.dataclass(frozen=True, order=True)
class Member:
    """One photo of a brand, for `moves`: its group and the group's position, its split, and whether that may change."""

    position: float
    group: str
    split: str
    is_movable: bool


def moves(members: Iterable[Member], rule: Rule) -> dict[str, str]:
    """The groups of one brand that have to change sides so that each split has its floor, and where they go.

    Those nearest to the threshold go. `members` is read once and not kept.
    """
    counts = dict.fromkeys(manifest.SPLITS, 0)
    nearest = {split: _Nearest(lowest=split == "train") for split in manifest.SPLITS}
    for member in members:
        counts[member.split] += 1
        nearest[member.split].add(member)
    floors = rule.floors(sum(counts.values()))
    found: dict[str, str] = {}
    for split, floor in floors.items():
        while counts[split] < floor:
            donors = [name for name in manifest.SPLITS if name != split and counts[name] > floors.get(name, 0)]
            # Train first, then the largest; a group goes only where its donor keeps its own floor.
            for donor in sorted(donors, key=lambda name: (name != "train", -counts[name])):
                group, size = nearest[donor].pop(counts[donor] - floors.get(donor, 0))
                if group:
                    break
            else:
                break  # no group is small enough
            found[group] = split
            counts[donor] -= size
            counts[split] += size
    return found


class _Nearest:
    """The few movable groups of one split that lie nearest to the threshold, with their sizes."""

    _KEPT = 4 * MIN_HELD_OUT_PER_BRAND  # more than all floors together ask for

    def __init__(self, *, lowest: bool) -> None:
        self._sign = 1 if lowest else -1
        self._sizes: dict[str, int] = {}
        self._heap: list[tuple[float, str]] = []  # the farthest first

    def add(self, member: Member) -> None:
        """Counts one photo."""
        if not member.is_movable:
            return
        if member.group in self._sizes:
            self._sizes[member.group] += 1
            return
        heapq.heappush(self._heap, (-self._sign * member.position, member.group))
        self._sizes[member.group] = 1
        if len(self._heap) > self._KEPT:
            _, group = heapq.heappop(self._heap)
            del self._sizes[group]

    def pop(self, most: int) -> tuple[str, int]:
        """Takes the smallest group, of equals the nearest: its name and size, or ("", 0) if it is over `most`."""
        for entry in sorted(self._heap, key=lambda entry: (self._sizes[entry[1]], -entry[0], entry[1])):
            if self._sizes[entry[1]] <= most:
                self._heap.remove(entry)
                return entry[1], self._sizes[entry[1]]
        return "", 0


def first_held_out(splits: Collection[str]) -> str:
    """Of several splits, the one whose photos matter most: test, then validation, then train."""
    return max(splits, key=manifest.SPLITS.index)
