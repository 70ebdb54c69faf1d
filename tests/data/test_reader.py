import logging
import os
import pathlib
import random
import threading
from concurrent import futures

import numpy as np
import pytest
import small_records

from carbrand.data import manifest, reader, records
from carbrand.data.order import Blocks, Order
from carbrand.data.reader import Damage, RecordReader, WindowReader
from carbrand.errors import DataError

SIZE = 200


def tiny(number):
    """No photo: the reader does not look into it."""
    return random.Random(number).randbytes(20 + number % 50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    labels = small_records.labels_of(SIZE)
    return small_records.write(tmp_path_factory.mktemp("reader"), labels, num_shards=5, photo=tiny)


@pytest.fixture
def own_folder(tmp_path):
    """One that the test may change."""
    return small_records.write(tmp_path, small_records.labels_of(SIZE), num_shards=5, photo=tiny)


def shard_path(folder, number):
    return folder / manifest.load(folder).splits["train"].shards[number].name


def test_each_record_is_the_one_that_was_written(folder):
    ours = RecordReader(folder, "train")
    labels = small_records.labels_of(SIZE)
    assert len(ours) == SIZE
    for number in range(SIZE):
        expected = small_records.record(number, labels[number].item(), tiny(number))
        assert records.parse(ours.read(number)) == expected


def test_labels_and_brands_are_those_of_the_records(folder):
    ours = RecordReader(folder, "train")
    np.testing.assert_array_equal(ours.labels, small_records.labels_of(SIZE))
    assert ours.labels.dtype == np.int32
    assert ours.num_brands == 4
    assert ours.mean_bytes == np.mean([len(ours.read(number)) for number in range(SIZE)])


@pytest.mark.parametrize(("first", "count"), [(0, SIZE), (0, 1), (39, 2), (40, 40), (35, 100), (SIZE - 1, 1)])
def test_a_run_is_what_single_reads_are(folder, first, count):
    ours = RecordReader(folder, "train")
    assert list(ours.read_run(first, count)) == [ours.read(number) for number in range(first, first + count)]


def test_a_run_takes_one_read_for_each_shard(folder, monkeypatch):
    ours, reads = RecordReader(folder, "train"), []
    pread = os.pread
    monkeypatch.setattr(reader.os, "pread", lambda *where: reads.append(where) or pread(*where))
    assert len(list(ours.read_run(30, 100))) == 100  # in shards of 40: parts of the first and last, and two between
    assert len(reads) == 4


def test_a_damaged_record_is_named_with_shard_and_place(own_folder):
    small_records.damage(own_folder, [50])
    ours = RecordReader(own_folder, "train")
    with pytest.raises(DataError, match=f"{shard_path(own_folder, 1)}: record 50: damaged record at byte .*checksum"):
        ours.read(50)
    assert records.parse(ours.read(51))["image/source/height"] == 451


def test_a_damaged_record_costs_a_run_that_record_only(own_folder):
    small_records.damage(own_folder, [50])
    ours = RecordReader(own_folder, "train")
    *before, damaged, after = ours.read_run(45, 7)
    assert [*before, after] == [ours.read(number) for number in (45, 46, 47, 48, 49, 51)]
    assert isinstance(damaged, DataError)
    assert f"{shard_path(own_folder, 1)}: record 50: damaged record at byte" in str(damaged)


def test_a_shard_that_was_cut_off_costs_the_records_behind(own_folder):
    path = shard_path(own_folder, 4)
    row = manifest.load_index(own_folder, "train")[197]
    os.truncate(path, int(row["offset"]) + 10)
    ours = RecordReader(own_folder, "train")
    *sound, cut, gone, gone_too = ours.read_run(190, 10)
    assert sound == [ours.read(number) for number in range(190, 197)]
    assert [str(error) for error in (cut, gone, gone_too)] == [
        f"{path}: record {number}: damaged record at byte {offset}: the file ends after {rest} of {size} bytes. "
        "Restore the file, or build again."
        for number, rest in ((197, 10), (198, 0), (199, 0))
        for _, offset, length, _ in [ours._index[number].item()]
        for size in [length + 16]
    ]


def test_a_missing_shard_is_named(own_folder):
    path = shard_path(own_folder, 1)
    path.unlink()
    ours = RecordReader(own_folder, "train")
    with pytest.raises(DataError, match=f"{path}: missing, though the manifest lists it. Run `carbrand build` again"):
        ours.read(50)
    assert len(ours.read(39)) > 0


def test_an_unknown_split_raises(folder):
    with pytest.raises(DataError, match="no split named 'dev'"):
        RecordReader(folder, "dev")


def test_an_empty_split_raises(tmp_path):
    small_records.write(tmp_path, np.zeros(0, int), num_shards=1)
    with pytest.raises(DataError, match="the train split is empty. Build with more photos, or another --split"):
        RecordReader(tmp_path, "train")


def open_files():
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


def test_more_shards_than_files_may_be_open_are_read_too(folder, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_OPEN_SHARDS", 2)
    ours, usual = RecordReader(folder, "train"), RecordReader(folder, "train")
    before = open_files()
    order = random.Random(0).sample(range(SIZE), SIZE)
    assert [ours.read(number) for number in order] == [usual.read(number) for number in order]
    assert open_files() - before <= 2 + 5  # those of `usual`


@pytest.mark.parametrize("name", ["read", "read_run"])
def test_a_shard_stays_open_while_it_is_read(folder, monkeypatch, name):
    monkeypatch.setattr(reader, "_MAX_OPEN_SHARDS", 1)
    ours, pread = RecordReader(folder, "train"), os.pread

    def pread_late(descriptor, *where):
        ours._open(4)  # another thread opens another shard, which takes the only place
        return pread(descriptor, *where)

    monkeypatch.setattr(os, "pread", pread_late)
    payload = ours.read(0) if name == "read" else next(ours.read_run(0, 1))
    assert records.parse(payload)["image/source/height"] == 400


def test_damage_is_counted_and_named_once(caplog):
    ours = Damage(1000, 0.003)
    for record in (7, 8, 7, 8, 8):
        ours.note(record, DataError(f"shard: record {record}: damaged."))
    assert [entry.message for entry in caplog.records] == [
        "left out shard: record 7: damaged. (1 so far, at most 3)",
        "left out shard: record 8: damaged. (2 so far, at most 3)",
    ]
    assert {entry.levelno for entry in caplog.records} == {logging.WARNING}


def test_one_damaged_record_too_many_raises():
    ours = Damage(1000, 0.003)
    for record in range(3):
        ours.note(record, DataError("damaged."))
    message = (
        r"shard: record 3: damaged\. So 4 of 1000 records are damaged, more than max_damaged_fraction=0.003 allows"
    )
    with pytest.raises(DataError, match=message):
        ours.note(3, DataError("shard: record 3: damaged."))


def test_a_small_dataset_may_have_one_damaged_record():
    ours = Damage(20, 0.01)
    ours.note(3, DataError("damaged."))
    with pytest.raises(DataError, match="So 2 of 20 records are damaged"):
        ours.note(4, DataError("damaged."))


def test_a_budget_of_zero_raises_at_the_first():
    with pytest.raises(DataError, match=r"^shard: record 3: damaged\.$"):
        Damage(1000, 0.0).note(3, DataError("shard: record 3: damaged."))


def test_damage_from_many_threads_is_counted_exactly(caplog):
    ours = Damage(1000, 1.0)
    with futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ours.note(n % 100, DataError("damaged.")), range(4000)))
    assert len(caplog.records) == 100
    assert "(100 so far, at most 1000)" in max(entry.message for entry in caplog.records if "(100" in entry.message)


def read(windows, number, record):
    return windows.windows_of(np.array([number]))[0].read(record)


def make_windows(folder, blocks):
    ours = RecordReader(folder, "train")
    order = Order(ours.labels, seed=0, blocks=blocks)
    return ours, order, WindowReader(ours, order)


ALL_BLOCKS = [Blocks(8, 64), Blocks(7, 30), Blocks(1, 1), Blocks(1, 5), Blocks(10, 100), Blocks(50, 1000)]


@pytest.mark.parametrize("blocks", ALL_BLOCKS)
@pytest.mark.parametrize("threads", [1, 4, 16])
def test_windows_hold_what_single_reads_find(folder, blocks, threads):
    ours, order, windows = make_windows(folder, blocks)
    numbers = np.arange(130, 130 + 3 * SIZE)  # from within an epoch, over the borders of windows and epochs
    asked = order(numbers)
    with futures.ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda *example: read(windows, *example), numbers.tolist(), asked.tolist()))
    assert found == [ours.read(record) for record in asked.tolist()]


@pytest.mark.parametrize("blocks", ALL_BLOCKS)
def test_threads_far_apart_find_their_records(folder, blocks):
    ours, order, windows = make_windows(folder, blocks)
    asked = order(np.arange(4 * SIZE))
    numbers = [n for at in range(60) for n in (at, at + SIZE // 2, at + SIZE, at + 2 * SIZE + 17)]
    with futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: read(windows, n, int(asked[n])), numbers))
    assert found == [ours.read(int(asked[number])) for number in numbers]


def test_a_step_back_over_the_border_of_windows_is_read_too(folder):
    ours, order, windows = make_windows(folder, Blocks(8, 40))
    asked = order(np.arange(SIZE))
    for number in (0, 40, 79, 0, 119, 39, 81):  # the first or last half of one of the first three windows
        assert read(windows, number, int(asked[number])) == ours.read(int(asked[number]))


def test_the_window_that_was_used_last_is_the_last_to_go(folder, monkeypatch):
    *_, windows = make_windows(folder, Blocks(8, 40))
    loads, load = [], windows._load
    monkeypatch.setattr(windows, "_load", lambda place: loads.append(place[1]) or load(place))
    for number in (0, 79, 0, 119, 119):  # of windows 0, 1 with the next one, 0 again, 2 with the next one
        windows.windows_of(np.array([number]))
    windows._thread.shutdown()
    assert loads == [0, 1, 2, 0, 3]


def test_a_window_is_not_read_again_while_a_thread_has_it(folder, monkeypatch):
    *_, windows = make_windows(folder, Blocks(8, 40))
    loads, load = [], windows._load
    monkeypatch.setattr(windows, "_load", lambda place: loads.append(place) or load(place))
    (held,) = windows.windows_of(np.array([0]))
    windows.windows_of(np.arange(40, 160))
    assert windows.windows_of(np.array([1])) == [held]
    windows._thread.shutdown()
    assert loads == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]


def test_each_window_is_read_once_and_the_next_one_ahead(folder, monkeypatch):
    ours, order, windows = make_windows(folder, Blocks(8, 64))
    loaded = []
    monkeypatch.setattr(ours, "read_run", lambda first, count: loaded.append(count) or [b""] * count)
    asked = order(np.arange(SIZE + 10))
    for number in range(SIZE + 10):
        read(windows, number, int(asked[number]))
    windows._thread.shutdown()
    # By hand: windows of 64, 64, 64 and 8; in the next epoch the first of 64, before whose half the reading ends.
    assert sum(loaded) == 64 + 64 + 64 + 8 + 64


def test_a_window_of_the_whole_split_is_read_block_by_block(folder, monkeypatch):
    ours, _, windows = make_windows(folder, Blocks(8, 1000))
    loaded = []
    monkeypatch.setattr(ours, "read_run", lambda first, count: loaded.append((first, count)) or [b""] * count)
    windows._load((0, 0))
    assert loaded == [(first, 8) for first in range(0, SIZE, 8)]


def test_a_damaged_record_in_a_window_raises_at_its_place_only(own_folder):
    small_records.damage(own_folder, [50])
    ours, order, windows = make_windows(own_folder, Blocks(8, 64))
    for number, record in enumerate(order(np.arange(SIZE)).tolist()):
        if record != 50:
            assert read(windows, number, record) == ours.read(record)
            continue
        with pytest.raises(DataError, match=f"{shard_path(own_folder, 1)}: record 50: damaged record"):
            read(windows, number, record)


def test_a_missing_shard_costs_a_window_its_own_records_only(own_folder):
    shard_path(own_folder, 1).unlink()
    ours, order, windows = make_windows(own_folder, Blocks(8, 64))
    for number, record in enumerate(order(np.arange(SIZE)).tolist()):
        if not 40 <= record < 80:
            assert read(windows, number, record) == ours.read(record)
            continue
        with pytest.raises(DataError, match="missing, though the manifest lists it"):
            read(windows, number, record)


def test_a_window_is_not_kept_when_its_examples_are_over(folder):
    _, order, windows = make_windows(folder, Blocks(8, 64))
    for number, record in enumerate(order(np.arange(2 * SIZE)).tolist()):
        read(windows, number, record)
        assert len(windows._alive) <= 2


def test_the_thread_of_a_window_reader_is_its_own(folder):
    _, order, windows = make_windows(folder, Blocks(8, 64))
    read(windows, 0, int(order(np.arange(1))[0]))
    assert any(thread.name.startswith("read-window") for thread in threading.enumerate())
