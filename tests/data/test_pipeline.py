import hashlib
import io
import itertools
import logging
import subprocess
import sys

import keras
import numpy as np
import pytest
import small_records
import tensorflow as tf
from PIL import Image

from carbrand.data import manifest, mixing, pipeline, reader, records
from carbrand.data.augment import Augment
from carbrand.data.order import Order
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError, DataError

SMALL = Preprocess(image_size_px=(32, 48))
ONCE = Augment(enabled=False)
MIXING = Augment(mixup_alpha=0.4, cutmix_alpha=1.0)
STREAMS = {
    "whole": Stream(),
    "windows": Stream(shuffle_mib=1),  # windows of about 400 records
    "balanced": Stream(sampling="balanced"),
}
IDS = ["number", "record"]
EACH_STREAM = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A thousand photos in four shards, in "train" only."""
    return small_records.write(tmp_path_factory.mktemp("thousand"), small_records.labels_of(1000), num_shards=4)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    return small_records.write(tmp_path_factory.mktemp("hundred"), small_records.labels_of(100))


@pytest.fixture
def damaged(tmp_path):
    """A thousand records without photos, of which one is damaged: number 437, in the second of four shards."""
    photo = small_records.photo(0)
    small_records.write(tmp_path, small_records.labels_of(1000), num_shards=4, photo=lambda number: photo)
    small_records.damage(tmp_path, [437])
    return tmp_path


def batches(folder, split="train", **options):
    options = {"batch_size": 8, "preprocess": SMALL, **options}
    return list(pipeline.make_dataset(folder, split, **options).as_numpy_iterator())


def columns(folder, **options):
    """Each field of all batches together."""
    found = batches(folder, **options)
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def hashes(folder, **options):
    """One per step, of numbers, records, pixels and labels."""
    return [step_hash(batch) for batch in batches(folder, fields=IDS, **options)]


def step_hash(batch):
    return hashlib.sha256(b"".join(batch[name].tobytes() for name in (*IDS, "image", "label"))).hexdigest()


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for (our_images, our_labels), (their_images, their_labels) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our_images, their_images)
        np.testing.assert_array_equal(our_labels, their_labels)


def share_of(pipelines, number, replicas):
    return tf.distribute.InputContext(pipelines, number, replicas)


# The stream.


def test_shapes_and_types(drawn_records):
    image, label = next(iter(pipeline.make_dataset(drawn_records, "train", batch_size=8, preprocess=SMALL)))
    assert (image.shape, image.dtype) == ((8, 32, 48, 3), tf.uint8)
    assert (label.shape, label.dtype) == ((8,), tf.int32)


@pytest.mark.parametrize("augment", [Augment(), ONCE, MIXING], ids=["augment", "off", "mixing"])
def test_shapes_of_a_training_batch_are_known_before_it_is_read(drawn_records, augment):
    dataset = pipeline.make_dataset(drawn_records, "train", batch_size=6, preprocess=SMALL, augment=augment)
    image, label = dataset.element_spec
    assert image.shape == (6, 32, 48, 3)
    assert label.shape == ((6, 6) if augment is MIXING else (6,))  # there are six brands


def test_an_epoch_holds_each_record_once_in_the_order_of_its_numbers(thousand):
    ours = columns(thousand, fields=IDS, num_steps=250)
    np.testing.assert_array_equal(ours["number"], np.arange(2000))
    for epoch in np.split(ours["record"], 2):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1000))
    np.testing.assert_array_equal(ours["record"], Order(np.zeros(1000), seed=0)(np.arange(2000)))
    np.testing.assert_array_equal(ours["label"], small_records.labels_of(1000)[ours["record"]])


@EACH_STREAM
@pytest.mark.parametrize("augment", [Augment(), ONCE], ids=["augment", "off"])
def test_the_stream_does_not_depend_on_threads(thousand, stream, augment):
    ours, theirs = (
        hashes(
            thousand,
            stream=Stream(stream.sampling, stream.shuffle_mib, threads=threads),
            augment=augment,
            num_steps=200,
        )
        for threads in (1, 4)
    )
    assert ours == theirs


@pytest.mark.parametrize("batch_size", [128, 129, 260, 320])
def test_a_large_last_batch_is_whole(hundred, batch_size):
    # Large batches are read in equal blocks, into which their photos may not divide.
    ours = batches(hundred, fields=IDS, batch_size=batch_size, start_step=1, num_steps=3)
    np.testing.assert_array_equal(
        [batch["number"] for batch in ours], np.arange(batch_size, 3 * batch_size).reshape(2, batch_size)
    )


def test_the_stream_does_not_depend_on_the_batch_size(thousand):
    ours, theirs = (columns(thousand, fields=IDS, batch_size=size, num_steps=1200 // size) for size in (8, 300))
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_iterator_waits_for_a_tuner_when_it_ends(drawn_records, split):
    dataset = pipeline.make_dataset(drawn_records, split, batch_size=8, preprocess=SMALL)
    assert dataset.options().autotune.enabled is False


def test_the_stream_does_not_depend_on_tensorflows_threads(drawn_records):
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    dataset = pipeline.make_dataset(drawn_records, "train", batch_size=8, preprocess=SMALL, num_steps=8)
    alone = dataset.with_options(options).as_numpy_iterator()
    assert_equal(list(alone), batches(drawn_records, num_steps=8))


def test_the_stream_is_the_same_with_deterministic_operations(hundred):
    code = (
        "import hashlib, sys, tensorflow as tf; from carbrand.data import pipeline;"
        "tf.keras.utils.set_random_seed(0); tf.config.experimental.enable_op_determinism();"
        "stream = pipeline.make_dataset(sys.argv[1], 'train', batch_size=8, num_steps=3);"
        "print(hashlib.sha256(b''.join(images.numpy().tobytes() for images, _ in stream)).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(hundred)], capture_output=True, check=True, text=True)
    ours = b"".join(images.tobytes() for images, _ in batches(hundred, num_steps=3, preprocess=Preprocess()))
    assert done.stdout.strip() == hashlib.sha256(ours).hexdigest()


def test_seed_changes_order_and_pixels(drawn_records):
    ours, theirs = batches(drawn_records, num_steps=1), batches(drawn_records, num_steps=1, seed=1)
    assert (ours[0][0] != theirs[0][0]).any()


def test_a_record_is_varied_anew_in_each_epoch(hundred):
    ours = columns(hundred, fields=IDS, batch_size=100, num_steps=2)
    first, second = (ours["image"][part][np.argsort(ours["record"][part])] for part in (slice(100), slice(100, 200)))
    assert (first != second).any((1, 2, 3)).all()


def test_without_augmentation_training_sees_what_evaluation_sees(hundred):
    ours = columns(hundred, fields=IDS, augment=ONCE, batch_size=100, num_steps=2)
    theirs = columns(hundred, fields=IDS, is_training=False)
    np.testing.assert_array_equal(ours["image"], theirs["image"][ours["record"]])


def test_balanced_epochs_hold_each_brand_as_often(thousand):
    ours = columns(thousand, fields=IDS, stream=Stream(sampling="balanced"), num_steps=250)
    for epoch in np.split(ours["label"], 2):
        assert np.bincount(epoch).tolist() == [250] * 4
    np.testing.assert_array_equal(ours["label"], small_records.labels_of(1000)[ours["record"]])


def test_balanced_brands_are_told(thousand, caplog):
    caplog.set_level(logging.INFO)
    pipeline.make_dataset(thousand, "train", batch_size=8, stream=Stream(sampling="balanced"))
    assert "balanced sampling: an epoch holds [250, 250, 250, 250] photos of each brand" in caplog.messages


def test_a_late_start_reads_nothing_before_it(thousand, monkeypatch):
    asked, read = [], reader.RecordReader.read
    monkeypatch.setattr(reader.RecordReader, "read", lambda ours, record: asked.append(record) or read(ours, record))
    (batch,) = batches(thousand, fields=IDS, start_step=10**9, num_steps=10**9 + 1)
    assert batch["number"][0] == 8 * 10**9
    assert sorted(asked) == sorted(batch["record"])


def test_a_late_start_reads_no_window_before_its_own(thousand, monkeypatch):
    loaded, load = [], reader.WindowReader._load
    monkeypatch.setattr(reader.WindowReader, "_load", lambda ours, place: loaded.append(place) or load(ours, place))
    batches(thousand, fields=IDS, stream=STREAMS["windows"], start_step=125 * 10**6, num_steps=125 * 10**6 + 1)
    assert loaded == [(10**6, 0)]


# Replicas and workers.


@EACH_STREAM
@pytest.mark.parametrize("replicas", [2, 4])
def test_two_workers_share_each_step(thousand, stream, replicas):
    whole = columns(thousand, fields=IDS, stream=stream, num_steps=200)
    parts = [
        columns(thousand, fields=IDS, stream=stream, num_steps=200, input_context=share_of(2, number, replicas))
        for number in (0, 1)
    ]
    for name, values in whole.items():
        shares = [part[name].reshape(200, 4, *values.shape[1:]) for part in parts]
        np.testing.assert_array_equal(np.concatenate(shares, 1), values.reshape(200, 8, *values.shape[1:]))
    assert not set(parts[0]["number"]) & set(parts[1]["number"])


def test_a_worker_gets_batches_for_one_replica(thousand):
    (first, *_) = batches(thousand, batch_size=16, input_context=share_of(2, 1, 4), num_steps=1)
    assert len(first[1]) == 4


def test_workers_start_at_any_step_too(thousand):
    worker = share_of(2, 1, 2)
    whole = hashes(thousand, input_context=worker, num_steps=130)
    assert hashes(thousand, input_context=worker, start_step=120, num_steps=130) == whole[120:]


def test_a_batch_that_does_not_divide_among_the_replicas_raises(thousand):
    with pytest.raises(ConfigError, match=r"batch_size=10 does not divide among 4 replicas. Use .* for example 12"):
        batches(thousand, batch_size=10, input_context=share_of(2, 0, 4))


def test_a_batch_that_does_not_divide_among_the_workers_raises(thousand):
    with pytest.raises(ConfigError, match=r"batch_size=5 does not divide among 2 workers. Use .* for example 6"):
        batches(thousand, batch_size=5, input_context=share_of(2, 0, 1))


def test_evaluation_of_several_workers_has_to_be_padded(thousand):
    with pytest.raises(ConfigError, match="pad_last=False with several workers: .* Set pad_last=True"):
        batches(thousand, is_training=False, input_context=share_of(2, 0, 2))


REPLICAS = """
import hashlib, sys
import numpy as np, tensorflow as tf
from carbrand.data import pipeline
from carbrand.data.preprocess import Preprocess

folder, shuffle_mib, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
names = ["number", "record", "image", "label"]
options = {
    "batch_size": 8, "preprocess": Preprocess(image_size_px=(32, 48)), "num_steps": steps, "fields": names[:2],
    "stream": pipeline.Stream(shuffle_mib=shuffle_mib),
}
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
for replicas in (1, 2, 4):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(replicas)])
    assert strategy.num_replicas_in_sync == replicas
    for dataset in (
        strategy.experimental_distribute_dataset(pipeline.make_dataset(folder, "train", **options)),
        strategy.distribute_datasets_from_function(
            lambda context: pipeline.make_dataset(folder, "train", input_context=context, **options)
        ),
    ):
        seen = []
        for batch in dataset:
            parts = {name: strategy.experimental_local_results(batch[name]) for name in names}
            assert [len(part) for part in parts["number"]] == [8 // replicas] * replicas
            whole = [np.concatenate([part.numpy() for part in parts[name]]).tobytes() for name in names]
            seen.append(hashlib.sha256(b"".join(whole)).hexdigest())
        print("steps", *seen)
"""


@pytest.mark.slow
@pytest.mark.parametrize("shuffle_mib", [0, 1])
def test_any_number_of_replicas_sees_the_same_200_steps(thousand, shuffle_mib):
    command = [sys.executable, "-c", REPLICAS, str(thousand), str(shuffle_mib), "200"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = hashes(thousand, stream=Stream(shuffle_mib=shuffle_mib), num_steps=200)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("steps ")]
    assert lines == [["steps", *expected]] * 6  # 1, 2, 4 replicas, both ways


# Stopping and going on.


TRAINING = """
import hashlib, sys
from carbrand.data import pipeline
from carbrand.data.preprocess import Preprocess

dataset = pipeline.make_dataset(
    sys.argv[1], "train", batch_size=8, preprocess=Preprocess(image_size_px=(32, 48)), fields=["number", "record"],
    start_step=int(sys.argv[2]), stream=pipeline.Stream(shuffle_mib=int(sys.argv[3])),
)
for batch in dataset.as_numpy_iterator():
    whole = b"".join(batch[name].tobytes() for name in ("number", "record", "image", "label"))
    print(hashlib.sha256(whole).hexdigest(), flush=True)
"""


def killed_after(folder, start, count, shuffle_mib):
    """The hashes that a program wrote which is killed without notice as soon as it has written so many."""
    command = [sys.executable, "-c", TRAINING, str(folder), str(start), str(shuffle_mib)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        return [process.stdout.readline().strip() for _ in range(count)]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("shuffle_mib", [0, 1])
def test_a_killed_program_goes_on_as_if_nothing_had_happened(thousand, shuffle_mib):
    # An epoch is 125 steps, so the second run crosses from the first to the second, the third one to the third.
    stops = [0, *sorted(np.random.default_rng(shuffle_mib).integers(20, 300, 2).tolist()), 300]
    expected = hashes(thousand, stream=Stream(shuffle_mib=shuffle_mib), num_steps=300)
    for start, stop in itertools.pairwise(stops):
        assert killed_after(thousand, start, stop - start, shuffle_mib) == expected[start:stop]


@EACH_STREAM
def test_twenty_restarts_at_random_steps_change_nothing(thousand, stream):
    whole = hashes(thousand, stream=stream, num_steps=320)
    assert len(set(whole)) == 320
    # An epoch is 125 steps.
    for start in [0, 124, 125, 249, *np.random.default_rng(7).integers(0, 310, 16).tolist()]:
        resumed = hashes(thousand, stream=stream, start_step=start, num_steps=start + 5)
        assert resumed == whole[start : start + 5]


def test_a_program_with_a_live_iterator_ends(thousand):
    # Of many threads with large photos, some always are in the middle of a call when the program ends.
    code = (
        "import sys; from carbrand.data import pipeline; from carbrand.data.preprocess import Preprocess;"
        "options = {'preprocess': Preprocess(image_size_px=512), 'stream': pipeline.Stream(threads=8)};"
        "stream = iter(pipeline.make_dataset(sys.argv[1], 'train', batch_size=32, **options));"
        "next(stream); print('ends')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(thousand)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


# Evaluation.


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_yields_every_photo_once_in_order(drawn_records, batch_size):
    labels = [labels for _, labels in batches(drawn_records, is_training=False, batch_size=batch_size)]
    np.testing.assert_array_equal(np.concatenate(labels), manifest.load_index(drawn_records, "train")["label"])


def test_evaluation_goes_through_preprocess(hundred):
    (batch,) = batches(hundred, is_training=False, batch_size=100, fields=["record"])
    for image, record in zip(batch["image"], batch["record"].tolist(), strict=True):
        np.testing.assert_array_equal(image, SMALL(tf.constant(small_records.photo(record))))


def test_evaluation_starts_and_ends_at_any_step(hundred):
    whole = hashes(hundred, is_training=False)
    assert len(whole) == 13
    assert hashes(hundred, is_training=False, start_step=10) == whole[10:]
    assert hashes(hundred, is_training=False, start_step=2, num_steps=4) == whole[2:4]
    assert hashes(hundred, is_training=False, start_step=13) == []


def test_padding_repeats_the_last_photo_with_weight_0(hundred):
    images, labels, weights = batches(hundred, is_training=False, batch_size=64, pad_last=True)[-1]
    assert weights.tolist() == [1.0] * 36 + [0.0] * 28
    assert labels[36:].tolist() == [labels[35]] * 28
    np.testing.assert_array_equal(images[36:], np.broadcast_to(images[35], (28, 32, 48, 3)))


@pytest.mark.parametrize("per_replica", [1, 7, 64])
@pytest.mark.parametrize(("workers", "replicas"), [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4)])
def test_padded_evaluation_counts_each_photo_once(hundred, per_replica, workers, replicas):
    options = {"is_training": False, "pad_last": True, "fields": ["record", "weight"]}
    parts = [
        batches(
            hundred,
            batch_size=per_replica * replicas,
            input_context=share_of(workers, number, replicas),
            **options,
        )
        for number in range(workers)
    ]
    assert {len(batch["weight"]) for part in parts for batch in part} == {per_replica}
    assert len({len(part) for part in parts}) == 1  # all workers end at the same step
    seen = np.concatenate([batch["record"][batch["weight"] == 1] for part in parts for batch in part])
    np.testing.assert_array_equal(np.sort(seen), np.arange(100))
    assert {weight for part in parts for batch in part for weight in batch["weight"]} <= {0.0, 1.0}


# Fields.


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_every_feature_is_that_of_the_record(hundred, is_training):
    names = [*records.FEATURES, "record"]
    ours = columns(hundred, is_training=is_training, fields=names, batch_size=10, num_steps=10)
    their_reader = reader.RecordReader(hundred, "train")
    assert sorted(ours["record"]) == list(range(100))
    for place, record in enumerate(ours["record"].tolist()):
        expected = records.parse(their_reader.read(record))
        assert {name: ours[name][place] for name in records.FEATURES} == expected


def test_fields_come_in_their_types(hundred):
    names = [*records.FEATURES, *pipeline.EXTRA_FIELDS]
    dataset = pipeline.make_dataset(hundred, "train", batch_size=8, augment=MIXING, preprocess=SMALL, fields=names)
    types = {name: spec.dtype for name, spec in dataset.element_spec.items()}
    kinds = {bytes: tf.string, int: tf.int64}
    assert types == {name: kinds[kind] for name, kind in records.FEATURES.items()} | {
        "image": tf.uint8,
        "label": tf.int32,
        "number": tf.int64,
        "record": tf.int64,
        "weight": tf.float32,
        "mix": tf.float32,
    }


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_an_empty_choice_of_fields_is_a_dict_too(hundred, is_training):
    (batch,) = batches(hundred, fields=[], is_training=is_training, num_steps=1)
    assert batch.keys() == {"image", "label"}


def test_labels_match_the_names_of_the_brands(drawn_records):
    ours = columns(drawn_records, fields=["image/class/text"], is_training=False)
    brands = manifest.load(drawn_records).brands
    assert [text.decode() for text in ours["image/class/text"]] == [brands[label] for label in ours["label"]]


# Damage.


def test_one_damaged_record_is_left_out_of_evaluation_and_named(damaged, caplog):
    ours = columns(damaged, is_training=False, fields=["record"], batch_size=64)
    assert ours["record"].tolist() == [record for record in range(1000) if record != 437]
    assert len(caplog.messages) == 1
    shard = manifest.load(damaged).splits["train"].shards[1].name
    assert f"left out {damaged / shard}: record 437: damaged record at byte" in caplog.text
    assert "(1 so far, at most 10)" in caplog.text


def test_one_damaged_record_has_weight_0_in_padded_evaluation(damaged):
    ours = columns(damaged, is_training=False, fields=["record", "weight"], batch_size=64, pad_last=True)
    assert np.flatnonzero(ours["weight"][:1000] == 0).tolist() == [437]
    assert ours["weight"].sum() == 999


@pytest.mark.parametrize("shuffle_mib", [0, 1])
def test_one_damaged_record_is_replaced_in_training_and_named_once(damaged, caplog, shuffle_mib):
    ours = columns(damaged, fields=IDS, stream=Stream(shuffle_mib=shuffle_mib), num_steps=375)
    for epoch in np.split(ours["record"], 3):
        counts = np.bincount(epoch, minlength=1000)
        assert (len(epoch), counts[437], counts[438]) == (1000, 0, 2)
        assert (np.delete(counts, [437, 438]) == 1).all()
    assert [message.count("record 437: damaged") for message in caplog.messages] == [1]


def test_the_replacement_has_its_own_features(damaged):
    ours = columns(damaged, fields=["record", "image/source/height"], num_steps=125)
    np.testing.assert_array_equal(ours["image/source/height"], 400 + ours["record"])
    np.testing.assert_array_equal(ours["label"], small_records.labels_of(1000)[ours["record"]])


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_a_tenth_damaged_raises(damaged, is_training):
    small_records.damage(damaged, range(0, 1000, 10))
    message = (
        r"record \d+: damaged record.* So 11 of 1000 records are damaged, more than max_damaged_fraction=0.01 allows"
    )
    with pytest.raises(DataError, match=message), pipeline.data_errors():
        batches(damaged, is_training=is_training, num_steps=125)


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_without_a_budget_the_first_damaged_record_raises(damaged, is_training):
    with (
        pytest.raises(DataError, match=r"record 437: damaged record at byte .* build again\.$"),
        pipeline.data_errors(),
    ):
        batches(damaged, is_training=is_training, stream=Stream(max_damaged_fraction=0), num_steps=125)


def test_a_photo_that_cannot_be_decoded_is_left_out_of_training(tmp_path, caplog):
    photos = [small_records.photo(0)[:100], *map(small_records.photo, range(1, 20))]
    small_records.write(tmp_path, small_records.labels_of(20), photo=photos.__getitem__)
    ours = columns(tmp_path, fields=["record"], batch_size=10, num_steps=2)
    assert sorted(ours["record"]) == [1, *range(1, 20)]
    assert "record 0: cannot be decoded" in caplog.text


def test_no_sound_record_at_all_raises(tmp_path):
    small_records.write(tmp_path, small_records.labels_of(20))
    small_records.damage(tmp_path, range(20))
    with pytest.raises(DataError, match="none of 20 records is sound. Build them again"), pipeline.data_errors():
        batches(tmp_path, stream=Stream(max_damaged_fraction=1), num_steps=1)


def test_a_missing_shard_is_named(tmp_path):
    small_records.write(tmp_path, small_records.labels_of(100))
    name = manifest.load(tmp_path).splits["train"].shards[1].name
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing, though the manifest lists it"), pipeline.data_errors():
        batches(tmp_path, is_training=False)


def test_other_errors_of_tensorflow_stay_what_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError, match="shape"), pipeline.data_errors():
        tf.reshape(tf.zeros(3), [2])


# Mixing.


def test_mixed_photos_are_float32_and_their_targets_sum_to_1(hundred):
    for image, target in batches(hundred, augment=MIXING, num_steps=20):
        assert (image.shape, image.dtype, target.shape, target.dtype) == ((8, 32, 48, 3), "f4", (8, 4), "f4")
        assert 0 <= image.min() <= image.max() <= 255
        np.testing.assert_allclose(target.sum(1), 1, atol=1e-6)


def test_photos_are_mixed_as_often_as_asked_for(hundred):
    targets = np.concatenate([target for _, target in batches(hundred, augment=MIXING, num_steps=50)])
    # Of the pairs, 1/4 + 1/16 + 2/64 are of one brand; at alpha 0.4 and 1.0 few shares round to 0 or 1.
    assert 0.4 < (targets.max(1) < 0.999).mean() < 0.7


def test_photos_can_be_mixed_on_the_device_instead(hundred):
    mixed = batches(hundred, augment=MIXING, num_steps=5)
    plain = batches(hundred, augment=MIXING, num_steps=5, fields=["mix"])
    for (image, target), batch in zip(mixed, plain, strict=True):
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        ours, our_targets = mixing.mix(batch["image"], tf.one_hot(batch["label"], 4), batch["mix"])
        np.testing.assert_array_equal(ours, image)
        np.testing.assert_array_equal(our_targets, target)


def test_an_odd_batch_cannot_be_mixed(hundred):
    with pytest.raises(ConfigError, match="batch_size: 7 photos on each replica cannot be mixed in pairs"):
        batches(hundred, augment=MIXING, batch_size=7, num_steps=1)


def test_evaluation_is_never_mixed(hundred):
    assert_equal(batches(hundred, is_training=False, augment=MIXING), batches(hundred, is_training=False))


# Keras.


def tiny_model(**metrics):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((32, 48, 3)), *layers])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), **metrics)
    return model


def test_keras_fits_and_validates(drawn_records):
    train = pipeline.make_dataset(drawn_records, "train", batch_size=8, preprocess=SMALL)
    validation = pipeline.make_dataset(drawn_records, "validation", batch_size=8, preprocess=SMALL, pad_last=True)
    model = keras.Sequential([keras.Input((32, 48, 3)), keras.layers.Flatten(), keras.layers.Dense(6)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(train, steps_per_epoch=2, epochs=2, validation_data=validation, verbose=0).history
    assert history.keys() == {"loss", "val_loss"}
    assert len(history["loss"]) == 2


def test_keras_fits_mixed_photos(hundred):
    model = tiny_model()
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    train = pipeline.make_dataset(hundred, "train", batch_size=8, preprocess=SMALL, augment=MIXING)
    assert np.isfinite(model.fit(train, steps_per_epoch=3, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("batch_size", [7, 64])
def test_keras_evaluates_each_photo_once(hundred, batch_size):
    model = tiny_model(weighted_metrics=["accuracy"])
    padded = pipeline.make_dataset(
        hundred, "train", is_training=False, batch_size=batch_size, preprocess=SMALL, pad_last=True
    )
    accuracy = model.evaluate(padded, verbose=0, return_dict=True)["accuracy"]
    images, labels = map(np.concatenate, zip(*batches(hundred, is_training=False), strict=True))
    hits = (np.argmax(model.predict(images, verbose=0), 1) == labels).sum()
    assert 0 < hits < 100
    assert np.float32(accuracy) == np.float32(hits) / np.float32(100)


def own_losses(model, images, labels):
    logits = model.predict(images, verbose=0)
    return keras.ops.logsumexp(logits, 1).numpy() - logits[np.arange(len(labels)), labels]


def test_keras_s_loss_divides_by_the_rows_of_full_batches(hundred):
    model = tiny_model()
    images, labels = map(np.concatenate, zip(*batches(hundred, is_training=False), strict=True))
    options = {"is_training": False, "batch_size": 64, "preprocess": SMALL, "pad_last": True}
    loss = model.evaluate(pipeline.make_dataset(hundred, "train", **options), verbose=0)
    assert loss == pytest.approx(own_losses(model, images, labels).sum() / 128, rel=1e-5)


@pytest.mark.parametrize("augment", [Augment(), ONCE], ids=["augment", "off"])
def test_keras_s_loss_of_so_many_steps_counts_them_only(hundred, augment):
    model = tiny_model()
    images, labels = map(np.concatenate, zip(*batches(hundred, num_steps=2, augment=augment), strict=True))
    train = pipeline.make_dataset(hundred, "train", batch_size=8, num_steps=2, preprocess=SMALL, augment=augment)
    assert model.evaluate(train, verbose=0) == pytest.approx(own_losses(model, images, labels).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, tf.data.INFINITE_CARDINALITY),
        ({"augment": ONCE}, tf.data.INFINITE_CARDINALITY),
        ({"num_steps": 9, "start_step": 4, "batch_size": 300}, 5),
        ({"num_steps": 4, "start_step": 9}, 0),
        ({"is_training": False, "pad_last": True, "input_context": share_of(2, 1, 4)}, 26),  # two for each of 13 steps
        ({"is_training": False}, tf.data.UNKNOWN_CARDINALITY),
    ],
)
def test_the_number_of_batches_is_told(hundred, options, expected):
    assert pipeline.make_dataset(hundred, "train", **{"batch_size": 8, **options}).cardinality() == expected


# Arguments.


def test_unknown_split_raises(drawn_records):
    with pytest.raises(DataError, match="no split named 'dev'"):
        pipeline.make_dataset(drawn_records, "dev", batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: give a whole number at least 1"),
        ({"seed": 1.5}, "seed=1.5: give a whole number"),
        ({"num_steps": -1}, "num_steps=-1: give a whole number at least 0"),
        ({"fields": "image/filename"}, "fields='image/filename': give a list of names"),
        ({"batch_size": 2.0}, "batch_size=2.0: give a whole number at least 1"),
        ({"start_step": -1}, "start_step=-1: give a whole number at least 0"),
        ({"batch_size": True}, "batch_size=True: give a whole number at least 1"),
        ({"augment": {"flip": False}}, r"augment={'flip': False}: is no Augment. Give carbrand.Augment\(…\), or None"),
        ({"preprocess": 64}, "preprocess=64: is no Preprocess"),
        ({"stream": "balanced"}, "stream='balanced': is no Stream"),
        ({"fields": ["image/size"]}, "fields='image/size' is not one of 'number', 'record', 'weight'"),
    ],
)
def test_bad_arguments_raise(drawn_records, options, message):
    with pytest.raises(ConfigError, match=message):
        pipeline.make_dataset(drawn_records, "train", **{"batch_size": 2, **options})


def test_numpy_s_whole_numbers_are_taken(hundred):
    ours = {"batch_size": np.int64(4), "start_step": np.int32(1), "num_steps": np.uint8(3), "seed": np.int64(5)}
    assert_equal(batches(hundred, **ours), batches(hundred, batch_size=4, start_step=1, num_steps=3, seed=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "even"}, "stream.sampling='even' is not one of 'natural', 'sqrt', 'balanced'"),
        ({"shuffle_mib": -1}, "stream.shuffle_mib=-1: give a whole number at least 0"),
        ({"max_damaged_fraction": 1.5}, "stream.max_damaged_fraction=1.5: give a number at least 0 and at most 1"),
        ({"threads": -1}, "stream.threads=-1: give a whole number at least 0"),
        (
            {"shuffle_mib": 64, "sampling": "balanced"},
            "stream.shuffle_mib=64 with stream.sampling='balanced': .* Set shuffle_mib to 0, or sampling to 'natural'",
        ),
    ],
)
def test_bad_streams_raise(options, message):
    with pytest.raises(ConfigError, match=message):
        Stream(**options)


# What the network sees.


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def gradient(height, width):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 / height, columns * 255 / width, 0 * rows], -1).astype(np.uint8)


def test_preprocess_equals_pillow():
    pixels = gradient(300, 400)
    ours = Preprocess(image_size_px=(96, 96), crop_fraction=0.5)(tf.constant(jpeg(pixels))).numpy().astype(int)
    # The central window is 150 px of the 300 px square that fits; a box, as Pillow counts: left, top, right, bottom.
    window = Image.fromarray(pixels).resize((96, 96), Image.Resampling.BILINEAR, box=(125, 75, 275, 225))
    assert np.abs(ours - np.asarray(window).astype(int)).max() <= 3  # JPEG and rounding


def test_preprocess_takes_grey_png_of_any_shape():
    buffer = io.BytesIO()
    Image.new("L", (20, 90), 77).save(buffer, "PNG")
    image = Preprocess(image_size_px=(40, 64))(tf.constant(buffer.getvalue()))
    np.testing.assert_array_equal(image, np.full((40, 64, 3), 77, np.uint8))


@pytest.mark.parametrize("size", [16, "224", (224,) * 3, (224,), (), 0, 1.5])
def test_bad_image_size_raises(size):
    with pytest.raises(ConfigError, match="preprocess.image_size_px="):
        Preprocess(image_size_px=size)


def test_bad_crop_fraction_raises():
    with pytest.raises(ConfigError, match="preprocess.crop_fraction=0: give a number above 0 and at most 1"):
        Preprocess(crop_fraction=0)
