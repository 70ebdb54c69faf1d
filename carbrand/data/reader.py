"""Records by their number in a split, from many threads; a damaged record costs that record only, up to a budget."""

import collections
import functools
import io
import itertools
import logging
import os
import pathlib
import threading
import weakref
from collections.abc import Iterator
from concurrent import futures

import numpy as np

from carbrand.data import manifest, records
from carbrand.data.order import Order
from carbrand.errors import DataError

_MAX_OPEN_SHARDS = 64  # far below the usual limit of 1,024 open files in a process
_LOG = logging.getLogger(__name__)


class RecordReader:
    """Random access to one split's records."""

    def __init__(self, folder: str | os.PathLike[str], split: str) -> None:
        """Opens a records folder; DataError if it is not complete, or the split is unknown or empty."""
        self._index = manifest.load_index(folder, split)
        dataset = manifest.load(folder)
        self._paths = [str(pathlib.Path(folder) / shard.name) for shard in dataset.splits[split].shards]
        self._num_brands = len(dataset.brands)
        self._open = functools.lru_cache(_MAX_OPEN_SHARDS)(self._open_shard)
        if not len(self._index):
            raise DataError(f"{folder}: the {split} split is empty. Build with more photos, or another --split.")

    def __len__(self) -> int:
        return len(self._index)

    @property
    def num_brands(self) -> int:
        """Of the dataset."""
        return self._num_brands

    @property
    def labels(self) -> np.ndarray:
        """Label of every record [N] int32."""
        return self._index["label"]

    @property
    def mean_bytes(self) -> float:
        """Of a record's payload."""
        return float(self._index["length"].mean())

    def read(self, record: int) -> bytes:
        """The payload of one record; DataError, which names shard and record, if it is damaged or gone."""
        shard, offset, length, _ = self._index[record].item()
        # The file stays open while this thread has it, even when another shard takes its place in the cache.
        file = self._open(shard)
        return records.read(file.fileno(), offset, length, where=f"{self._paths[shard]}: record {record}")

    def photo(self, record: int) -> bytes:
        """The JPEG of one record; DataError as `read`."""
        return bytes(records.parse_bytes(self.read(record), "image/encoded"))

    def read_run(self, first: int, count: int) -> Iterator[bytes | DataError]:
        """The payloads of neighbours, at one read for each shard; instead of a bad one, what is wrong with it."""
        rows = self._index[first : first + count]
        for start, stop in _same_shard(rows["shard"]):
            begin = int(rows[start]["offset"])
            end = int(rows[stop - 1]["offset"]) + int(rows[stop - 1]["length"]) + records.FRAME_BYTES
            try:
                file = self._open(int(rows[start]["shard"]))  # in a variable, as in `read`
            except DataError as error:
                yield from itertools.repeat(error, stop - start)
                continue
            content = memoryview(os.pread(file.fileno(), end - begin, begin))
            for place in range(start, stop):
                offset, length = int(rows[place]["offset"]), int(rows[place]["length"])
                frame = bytes(content[offset - begin : offset - begin + records.FRAME_BYTES + length])
                try:
                    yield records.unframe(frame, length, offset=offset, where=self.name_of(first + place))
                except DataError as error:
                    yield error

    def name_of(self, record: int) -> str:
        """For messages: the shard's path, and the record's place in the split."""
        return f"{self._paths[self._index['shard'][record]]}: record {record}"

    def _open_shard(self, shard: int) -> io.FileIO:
        path = self._paths[shard]
        try:
            return io.FileIO(path)
        except FileNotFoundError:
            raise DataError(f"{path}: missing, though the manifest lists it. Run `carbrand build` again.") from None


class Damage:
    """The damaged records that were met, each counted and named once."""

    def __init__(self, num_records: int, max_fraction: float) -> None:
        """At most `max_fraction` of so many records may be damaged, but one always if that is not 0."""
        self._num_records = num_records
        self._max_fraction = max_fraction
        self._budget = max(int(max_fraction * num_records), 1) if max_fraction else 0
        self._found: set[int] = set()
        self._lock = threading.Lock()

    def note(self, record: int, error: DataError) -> None:
        """Names a damaged record in the log; DataError if it is one too many."""
        with self._lock:
            is_new = record not in self._found
            self._found.add(record)
            count = len(self._found)
        if count > self._budget:
            raise DataError(
                f"{error} So {count} of {self._num_records} records are damaged, more than "
                f"max_damaged_fraction={self._max_fraction:g} allows."
                if self._budget
                else str(error)
            )
        if is_new:
            _LOG.warning("left out %s (%d so far, at most %d)", error, count, self._budget)


class Window:
    """The records of one window, from when they are read on; in memory for as long as anybody has this."""

    def __init__(self, loading: "futures.Future[dict[int, bytes | DataError]]") -> None:
        """Sets what is being read."""
        self._loading = loading

    def read(self, record: int) -> bytes:
        """The payload of a record of this window; DataError as `RecordReader.read`."""
        found = self._loading.result()[record]
        if isinstance(found, DataError):
            raise found
        return found


class WindowReader:
    """Records in the order of windows of blocks: each window is read at once, while the one before it is used.

    So two windows are held in memory, and a disk or network on which single reads are slow is read in long runs.
    """

    def __init__(self, reader: RecordReader, order: Order) -> None:
        """Sets what to read, and the order, which has `blocks`."""
        self._reader = reader
        self._order = order
        assert order.blocks
        self._block = order.blocks.block
        self._recent: collections.OrderedDict[tuple[int, int], Window] = collections.OrderedDict()
        # Those that other threads have not done with count too, or a slow one would read its window again.
        self._alive: weakref.WeakValueDictionary[tuple[int, int], Window] = weakref.WeakValueDictionary()
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="read-window")
        self._lock = threading.Lock()

    def windows_of(self, numbers: np.ndarray) -> list[Window]:
        """For each of the example numbers [K], ascending, the window that it is in: hold them until they are used."""
        found = []
        for number in numbers.tolist():
            place, share_done = self._order.window_of(number)
            with self._lock:
                found.append(self._window(place))
                # Not at once: the window before, which other threads may be using, makes room for the next one.
                if share_done > 0.5:
                    self._window(self._order.next_window(place))
        return found

    def _window(self, place: tuple[int, int]) -> Window:
        window = self._alive.get(place)
        if window is None:
            window = self._alive[place] = Window(self._thread.submit(self._load, place))
        self._recent[place] = window
        self._recent.move_to_end(place)
        while len(self._recent) > 2:
            self._recent.popitem(last=False)
        return window

    def _load(self, place: tuple[int, int]) -> dict[int, bytes | DataError]:
        wanted = self._order.window_records(place)
        found: dict[int, bytes | DataError] = {}
        # Neighbouring blocks one by one too, or a window as large as the split would be in memory twice.
        for run in np.split(wanted, np.flatnonzero((np.diff(wanted) > 1) | (wanted[1:] % self._block == 0)) + 1):
            payloads = self._reader.read_run(int(run[0]), len(run))
            found.update(zip(run.tolist(), payloads, strict=True))
        return found


def _same_shard(shards: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of each run of equal numbers."""
    edges = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    return list(itertools.pairwise(edges))
