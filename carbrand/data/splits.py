"""Photos of one brand -> train, validation and test, by hash: the same photo stays in its split when others are added.

Only where a brand is so small that a split would miss its floor does a photo change sides.
"""

import hashlib
import math
from collections.abc import Iterable

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


def assign(keys: Iterable[str], fractions: tuple[float, float, float], seed: int) -> dict[str, str]:
    """The split of each photo of one brand.

    Each key's hash is a position in [0, 1), against thresholds: test lies lowest, then validation, then train. Splits
    that miss their floor are filled from train's photos nearest to the threshold.

    Args:
        keys: unique, one per photo.
        fractions: of train, validation and test.
        seed: another seed gives another assignment.
    """
    ordered = sorted(keys, key=lambda key: (_position(key, seed), key))
    groups: dict[str, list[str]] = {split: [] for split in manifest.SPLITS}
    for key in ordered:
        groups[_split_at(_position(key, seed), fractions)].append(key)
    _fill(groups, _floors(len(ordered), fractions))
    return {key: split for split, members in groups.items() for key in members}


def _position(key: str, seed: int) -> float:
    digest = hashlib.sha256(f"split:{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float, so never 1.0


def _split_at(position: float, fractions: tuple[float, float, float]) -> str:
    _, validation, test = fractions
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"


def _floors(num_photos: int, fractions: tuple[float, float, float]) -> dict[str, int]:
    """The fewest photos of each split; they leave at least one to train on."""
    held_out = [split for split, fraction in zip(manifest.SPLITS, fractions, strict=True) if fraction][1:]
    floor = min(MIN_HELD_OUT_PER_BRAND, (num_photos - 1) // max(len(held_out), 1))
    return {"train": min(num_photos, 1), **dict.fromkeys(held_out, floor)}


def _fill(groups: dict[str, list[str]], floors: dict[str, int]) -> None:
    """Moves photos until each split has its floor; the floors sum up to no more than the photos there are."""
    for split, floor in floors.items():
        while len(groups[split]) < floor:
            donor = max(
                groups, key=lambda name: (len(groups[name]) > floors.get(name, 0), name == "train", len(groups[name]))
            )
            groups[split].append(groups[donor].pop(0 if donor == "train" else -1))
