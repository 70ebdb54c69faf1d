"""The leakage gate: no photo stands in two places, and no group of photos in two splits.

Photos and groups are compared by 16-byte digests, so that even a large dataset's fit into memory, or into buckets.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from carbrand.data import manifest

# A photo, by its SHA-256, or a group, in one place. `record` counts from 0 in its shard; `may_recur`: within a split.
KEY_DTYPE = np.dtype(
    [
        ("high", "<u8"),
        ("low", "<u8"),
        ("is_group", "?"),
        ("may_recur", "?"),
        ("split", "u1"),
        ("shard", "<u4"),
        ("record", "<u4"),
    ]
)


class Keys:
    """The keys of one shard, as they are found; `photos_may_recur`: one photo may stand twice in a split."""

    def __init__(self, split: str, shard: int, num_records: int, *, photos_may_recur: bool) -> None:
        self._place = (manifest.SPLITS.index(split), shard)
        self._photos_may_recur = photos_may_recur
        self._keys = np.zeros(2 * num_records, KEY_DTYPE)
        self._count = 0

    def add(self, record: int, *, sha256: bytes, group: bytes) -> None:
        """Adds one photo, and its group if it has one."""
        self._add(b"photo:" + sha256, record, False, self._photos_may_recur)
        if group:
            self._add(b"group:" + group, record, True, True)

    def _add(self, name: bytes, record: int, is_group: bool, may_recur: bool) -> None:
        high, low = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), "<u8")
        self._keys[self._count] = (high, low, is_group, may_recur, *self._place, record)
        self._count += 1

    def array(self) -> np.ndarray:
        """All keys added, [n] of `KEY_DTYPE`."""
        return self._keys[: self._count]


def find(keys: np.ndarray) -> np.ndarray:
    """The leaks among `keys`, [n] of `KEY_DTYPE`, whatever their order.

    Returns:
        [m, 2] of `KEY_DTYPE`: a place, and the place before it that holds the same photo or the same group.
    """
    keys = keys[np.lexsort([keys[name] for name in ("record", "shard", "split", "low", "high")])]
    before, after = keys[:-1], keys[1:]
    is_same = (before["high"] == after["high"]) & (before["low"] == after["low"])
    is_leak = is_same & (~after["may_recur"] | (before["split"] != after["split"]))
    return np.stack([after[is_leak], before[is_leak]], axis=1)


def by_bucket(keys: np.ndarray, num_buckets: int) -> Iterator[tuple[int, bytes]]:
    """The keys, [n] of `KEY_DTYPE`, that fall into each bucket, as bytes: equal photos and groups are in one bucket."""
    buckets = keys["high"] % np.uint64(num_buckets)
    for bucket in np.unique(buckets).tolist():
        yield bucket, keys[buckets == bucket].tobytes()
