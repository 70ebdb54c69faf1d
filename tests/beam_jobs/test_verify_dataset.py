import shutil

import pytest

from beam_jobs import verify_dataset
from carbrand import errors, files
from carbrand.data import manifest, verify

SHARD = "carbrand-train.tfrecord-00001-of-00002"


@pytest.fixture
def dataset(drawn_records, tmp_path):
    return shutil.copytree(drawn_records, tmp_path / "records")


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def leak(folder):
    """Makes the last shard of test one of train's, in all but its name."""
    train, test = (manifest.load(folder).splits[split].shards[-1] for split in ("train", "test"))
    (folder / test.name).write_bytes((folder / train.name).read_bytes())


def test_a_build_has_no_problems(dataset):
    assert verify.run(dataset) == []
    assert verify_dataset.run(dataset, workers=1) == []


def test_the_folder_is_left_as_it_was(dataset):
    before = sorted(path.name for path in dataset.iterdir())
    verify_dataset.run(dataset, workers=1)
    assert sorted(path.name for path in dataset.iterdir()) == before


def test_what_a_killed_verification_left_goes_and_that_of_a_running_one_stays(dataset):
    for name in (".verify-killed", ".verify-running"):
        (dataset / name / "shuffle").mkdir(parents=True)
        (dataset / name / "lock").touch()
    with files.locked(dataset / ".verify-running" / "lock", "taken"):
        verify_dataset.run(dataset, workers=1)
    assert [path.name for path in dataset.glob(".verify-*")] == [".verify-running"]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_problems_are_found_as_in_one_process(dataset, workers):
    index = manifest.load_index(dataset, "train")
    in_shard = index[index["shard"] == 1]
    for record in (1, 4):
        flip(dataset / SHARD, int(in_shard["offset"][record]) + 500)
    flip(dataset / "rejects.jsonl", 3)
    (dataset / "index-validation.npy").unlink()
    leak(dataset)
    found = verify_dataset.run(dataset, workers=workers)
    assert found == verify.run(dataset)
    assert [problem.record for problem in found if problem.file == SHARD] == [1, 4]
    assert {"rejects.jsonl", "index-validation.npy"} < {problem.file for problem in found}


def test_a_leak_is_found_across_shards(dataset):
    leak(dataset)
    (dataset / "index-test.npy").unlink()  # so that the records are found by their lengths
    found = [problem.what for problem in verify_dataset.run(dataset, workers=1)]
    assert any(what.startswith(f"is the same photo as record 0 of {SHARD} (") for what in found)


def test_buckets_do_not_change_what_is_found(dataset, monkeypatch):
    leak(dataset)
    monkeypatch.setattr(verify_dataset, "PHOTOS_PER_BUCKET", 3)
    assert verify_dataset.run(dataset, workers=1) == verify.run(dataset)


def test_a_damaged_manifest_is_a_problem(dataset):
    flip(dataset / manifest.FILE_NAME, 0)
    assert [problem.file for problem in verify_dataset.run(dataset)] == [manifest.FILE_NAME]


def test_a_folder_without_manifest_raises(tmp_path):
    with pytest.raises(errors.DataError, match="not a complete records folder"):
        verify_dataset.run(tmp_path)


def test_an_option_that_beam_does_not_know_raises(dataset):
    with pytest.raises(errors.ConfigError, match="--tempp: no option of Apache Beam"):
        verify_dataset.run(dataset, beam_args=["--tempp=1"])


def test_a_folder_that_cannot_be_written_to_raises(dataset, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(verify_dataset.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(errors.ConfigError, match=r"cannot be written to \(Permission denied\), which several workers"):
        verify_dataset.run(dataset, workers=2)
