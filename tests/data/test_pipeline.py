import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from carbrand.data import manifest, pipeline, records
from carbrand.data.augment import Augment
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError, DataError

SMALL = Preprocess(image_size_px=(32, 48))


def batches(folder, split="train", **options):
    options = {"batch_size": 8, "preprocess": SMALL, **options}
    return [(image.numpy(), label.numpy()) for image, label in pipeline.make_dataset(folder, split, **options)]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for (our_images, our_labels), (their_images, their_labels) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our_images, their_images)
        np.testing.assert_array_equal(our_labels, their_labels)


def test_permutation_is_fixed_for_ever():
    # Written down once: another order here would break the resumption of every run.
    assert pipeline.permutation(8, 0, 1).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]


def test_each_epoch_is_another_permutation_of_all_records():
    order = pipeline.Order(100, seed=5)
    first, second = order(np.arange(100)), order(np.arange(100, 200))
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first != second).any()
    assert (first != pipeline.Order(100, seed=6)(np.arange(100))).any()


def test_shapes_and_types(drawn_records):
    image, label = next(iter(pipeline.make_dataset(drawn_records, "train", batch_size=8, preprocess=SMALL)))
    assert (image.shape, image.dtype) == ((8, 32, 48, 3), tf.uint8)
    assert (label.shape, label.dtype) == ((8,), tf.int32)


def test_stream_is_the_same_from_any_step(drawn_records):
    whole = batches(drawn_records, num_steps=12)
    assert len(whole) == 12
    for start in (1, 4, 11):
        assert_equal(batches(drawn_records, start_step=start, num_steps=12), whole[start:])


def test_stream_does_not_depend_on_batch_size_or_threads(drawn_records):
    by_eight = np.concatenate([images for images, _ in batches(drawn_records, num_steps=4)])
    dataset = pipeline.make_dataset(drawn_records, "train", batch_size=16, preprocess=SMALL, num_steps=2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    by_sixteen = np.concatenate([images.numpy() for images, _ in dataset.with_options(options)])
    np.testing.assert_array_equal(by_eight, by_sixteen)


def test_stream_is_the_same_with_deterministic_operations(drawn_records):
    code = (
        "import hashlib, sys, tensorflow as tf; from carbrand.data import pipeline;"
        "tf.keras.utils.set_random_seed(0); sys.argv[2] == 'yes' and tf.config.experimental.enable_op_determinism();"
        "stream = pipeline.make_dataset(sys.argv[1], 'train', batch_size=8, num_steps=3);"
        "print(hashlib.sha256(b''.join(images.numpy().tobytes() for images, _ in stream)).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(drawn_records)]
    hashes = {subprocess.run([*command, on], capture_output=True, check=True).stdout for on in ("yes", "no")}
    assert len(hashes) == 1


def test_seed_changes_order_and_pixels(drawn_records):
    ours, theirs = batches(drawn_records, num_steps=1), batches(drawn_records, num_steps=1, seed=1)
    assert (ours[0][0] != theirs[0][0]).any()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_yields_every_photo_once_in_order(drawn_records, batch_size):
    labels = np.concatenate([labels for _, labels in batches(drawn_records, is_training=False, batch_size=batch_size)])
    np.testing.assert_array_equal(labels, manifest.load_index(drawn_records, "train")["label"])


def test_padding_repeats_the_last_photo(drawn_records):
    count = len(manifest.load_index(drawn_records, "test"))
    (images, labels), *_ = batches(drawn_records, "test", batch_size=count + 3, pad_last=True)
    assert len(labels) == count + 3
    np.testing.assert_array_equal(images[-1], images[count - 1])


def test_labels_match_the_records(drawn_records):
    reader = pipeline.RecordReader(drawn_records, "train")
    brands = manifest.load(drawn_records).brands
    for number in range(len(reader)):
        record = records.decode(tf.constant(reader.read(number)))
        assert record["image/class/text"].numpy().decode() == brands[reader.labels[number]]


def test_damaged_record_is_named(drawn_records, tmp_path):
    for file in drawn_records.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = tmp_path / manifest.load(tmp_path).splits["train"].shards[1].name
    content = bytearray(shard.read_bytes())
    content[-100] ^= 0xFF
    shard.write_bytes(content)
    reader = pipeline.RecordReader(tmp_path, "train")
    with pytest.raises(DataError, match=f"{shard.name}: record {len(reader) - 1}: damaged record at byte"):
        reader.read(len(reader) - 1)
    with pytest.raises(DataError, match=f"{shard.name}: record .*: damaged record at byte"), pipeline.data_errors():
        batches(tmp_path, is_training=False)


def test_missing_shard_is_named(drawn_records, tmp_path):
    for file in drawn_records.iterdir():
        if file.is_file() and "tfrecord" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="missing, though the manifest lists it"):
        pipeline.RecordReader(tmp_path, "train").read(0)


def test_unknown_split_raises(drawn_records):
    with pytest.raises(DataError, match="no split named 'dev'"):
        pipeline.make_dataset(drawn_records, "dev", batch_size=2)


def test_batch_size_of_zero_raises(drawn_records):
    with pytest.raises(ConfigError, match="batch_size=0 is not a positive number"):
        pipeline.make_dataset(drawn_records, "train", batch_size=0)


def test_feeds_keras_fit(drawn_records):
    import keras

    model = keras.Sequential([keras.Input((32, 48, 3)), keras.layers.Flatten(), keras.layers.Dense(6)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train = pipeline.make_dataset(drawn_records, "train", batch_size=8, preprocess=SMALL)
    validation = pipeline.make_dataset(drawn_records, "validation", batch_size=8, preprocess=SMALL)
    history = model.fit(train, steps_per_epoch=2, epochs=1, validation_data=validation, verbose=0).history
    assert history.keys() == {"loss", "val_loss"}


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


def test_augmentation_is_a_function_of_the_seed():
    photo, augment = tf.constant(jpeg(gradient(60, 80))), Augment(color_jitter=0.4)
    one, same, other = (
        augment(photo, tf.constant(seed, tf.int64), (32, 32)).numpy() for seed in ([0, 1], [0, 1], [0, 2])
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_augmentation_with_nothing_to_vary_is_a_resize():
    augment = Augment(crop_area_min=1.0, crop_aspect=1.0, flip=False)
    ours = augment(tf.constant(jpeg(gradient(64, 64))), tf.constant([0, 1], tf.int64), (64, 64)).numpy()
    assert np.abs(ours.astype(int) - gradient(64, 64)).max() <= 6  # JPEG, decoded fast


def test_half_of_the_photos_are_mirrored():
    augment, photo = Augment(crop_area_min=1.0, crop_aspect=1.0), tf.constant(jpeg(gradient(64, 64)))
    left_is_brighter = [
        augment(photo, tf.constant([0, n], tf.int64), (32, 32)).numpy()[:, :16, 1].mean() > 128 for n in range(200)
    ]
    assert 70 < sum(left_is_brighter) < 130  # 4 standard deviations around 100


def test_crops_keep_at_least_the_area_asked_for():
    from carbrand.data.augment import random_window

    augment = Augment(crop_area_min=0.5)
    for n in range(50):
        window = random_window(tf.constant([200, 300, 3]), tf.constant([0, n], tf.int64), augment, (64, 96)).numpy()
        top, left, height, width = window
        assert height * width >= 0.49 * 200 * 300  # rounding to whole pixels
        assert 0 <= top <= 200 - height
        assert 0 <= left <= 300 - width


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_area_min": 0.0}, "augment.crop_area_min=0.0"),
        ({"crop_aspect": 0.5}, "augment.crop_aspect=0.5"),
        ({"color_jitter": 1.0}, "augment.color_jitter=1.0"),
    ],
)
def test_bad_augmentation_raises(options, message):
    with pytest.raises(ConfigError, match=message):
        Augment(**options)
