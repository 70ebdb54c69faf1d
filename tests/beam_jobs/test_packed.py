import operator
import pathlib

import apache_beam as beam
import pytest
from apache_beam.pipeline import PipelineVisitor

from beam_jobs import packed, runners
from beam_jobs.packed import Pack


def run(tmp_path, items, *steps):
    """What the steps make of `items`, one element each, read back from files."""
    found = tmp_path / "found"
    found.mkdir()

    def build(pipeline):
        elements = pipeline | beam.Create(items) | beam.Reshuffle()
        for number, step in enumerate(steps):
            elements = elements | f"Step{number}" >> step
        _ = elements | beam.Map(_keep, str(found))

    runners.run(build, runners.make_options(1, workers=1, beam_args=()), folder=str(tmp_path))
    return sorted((eval(path.read_text()) for path in found.iterdir()), key=str)


def _keep(element, folder):
    text = repr(element)
    pathlib.Path(folder, str(abs(hash(text)))).write_text(text)


def _listed(element):
    return element[0], sorted(element[1])


def _sorted_groups(pack):
    return sorted((key, sorted(values)) for key, values in pack)


def _two(row):
    yield from (row, -row)


def test_packs_hold_all_rows_in_order():
    assert list(packed.packs(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(packed.packs([], 2)) == []


def test_map_and_flat_map_take_each_row(tmp_path):
    steps = packed.Map(operator.add, 10), packed.FlatMap(_two)
    assert run(tmp_path, [Pack([1, 2]), Pack(), Pack([3])], *steps) == [[11, -11, 12, -12], [13, -13], []]


def test_rows_of_one_key_come_together(tmp_path):
    rows = [(f"key {n % 7}", n) for n in range(100)]
    items = list(packed.packs(rows, 9))
    folder = str(tmp_path / "shuffle")
    found = run(tmp_path, items, packed.GroupByKey(folder, 3), beam.Map(_sorted_groups))
    expected = {f"key {k}": list(range(k, 100, 7)) for k in range(7)}
    assert 1 < len(found) <= 3
    assert sorted(group for pack in found for group in pack) == sorted(expected.items())


def test_keys_that_stand_apart_are_elements_of_their_own(tmp_path):
    items = [Pack([("a", 1), ("b", 2)]), Pack([("a", 3)]), Pack()]
    found = run(tmp_path, items, packed.GroupApart(str(tmp_path / "shuffle")), beam.Map(_listed))
    assert found == [("a", [1, 3]), ("b", [2])]


@pytest.mark.parametrize("by_part", [True, False])
def test_rows_of_several_inputs_come_together(tmp_path, by_part):
    folder = str(tmp_path / "shuffle")
    group = packed.GroupByKey(folder, 1) if by_part else packed.GroupApart(folder)
    found = run(tmp_path, [Pack([("a", 1), ("b", 2)])], _Twice(group), beam.Map(_sorted_groups if by_part else _listed))
    expected = [("a", [1, 1]), ("b", [2, 2])]
    assert found == ([expected] if by_part else expected)


class _Twice(beam.PTransform):
    """Groups the rows with themselves."""

    def __init__(self, group):
        super().__init__()
        self._group = group

    def expand(self, rows):
        return (rows, rows | beam.Map(_same)) | self._group


def _same(pack):
    return pack


def test_beam_holds_no_rows_of_several_inputs(tmp_path):
    """Its Flatten does, in the local runner; so only names of files may reach one."""
    pipeline = beam.Pipeline()
    rows = pipeline | beam.Create([Pack([("a", 1)])]), pipeline | "Other" >> beam.Create([Pack([("b", 1)])])
    _ = rows | packed.GroupByKey(str(tmp_path), 1)
    names = [part.full_label for part in _inputs_of_flatten(pipeline)]
    assert names == [f"GroupByKey/Input{n}" for n in range(2)]


def _inputs_of_flatten(pipeline):
    found = []

    class Visitor(PipelineVisitor):
        def visit_transform(self, node):
            if isinstance(node.transform, beam.Flatten):
                found.extend(value.producer for value in node.inputs)

    pipeline.visit(Visitor())
    return found


def test_rows_can_be_read_twice(tmp_path):
    (tmp_path / "file").write_bytes(b"xx" + packed.pickle.dumps([1, 2]))
    length = (tmp_path / "file").stat().st_size - 2
    rows = packed.Rows((packed.Slice(str(tmp_path / "file"), 2, length),))
    assert list(rows) == list(rows) == [1, 2]


def test_bytes_are_grouped_as_they_are(tmp_path):
    items = [Pack([(1, b"abc"), (2, b"")]), Pack([(1, b"de")])]
    found = run(tmp_path, items, packed.GroupBytes(str(tmp_path / "shuffle")), beam.Map(_contents))
    assert found == [(1, [b"abc", b"de"]), (2, [b""])]


def _contents(element):
    return element[0], sorted(part.read() for part in element[1])


def test_nothing_but_names_of_files_passes_through_beam(tmp_path):
    """What Beam holds does not grow with the rows: a part of a pack is one short element, however long its rows."""
    (element,) = packed._write(Pack([("part", bytes(10**6))]), str(tmp_path))
    assert len(packed.pickle.dumps(element)) < 400
