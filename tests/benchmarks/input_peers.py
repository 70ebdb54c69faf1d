"""The peers of `input_pipeline.py`, which tells what each does, and the measuring that all contenders share.

Nothing of carbrand is imported here, since some peers run in an environment of their own. A contender is a function
from a `Source` to an endless iterator of batches of images.
"""

import concurrent.futures
import dataclasses
import importlib
import itertools
import json
import math
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterable

import numpy as np
import psutil

BATCH = 64
SIZE_PX = 224
AREA = (0.35, 1.0)  # shares of the photo that a crop keeps
ASPECT = (3 / 4, 4 / 3)  # width by height of a crop
SHUFFLE = 1000  # records in the buffer of a peer that shuffles by one; Model Garden's own default is 10,000
WARM_UP_BATCHES = 10

COLOR_JITTER = 0.4
RANDAUGMENT_LAYERS = 2
ERASE_PROBABILITY = 0.25


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder of records, a folder per brand of the same JPEGs, and how many images to take with how many cores."""

    records: str
    jpegs: str
    images: int
    workers: int

    @property
    def record_files(self):
        return sorted(map(str, pathlib.Path(self.records).glob("*-train.tfrecord*")))

    @property
    def jpeg_files(self):
        return sorted(map(str, pathlib.Path(self.jpegs).rglob("*.jpg")))


@dataclasses.dataclass(frozen=True)
class Contender:
    batches: Callable[[Source], Iterable]
    modules: tuple[str, ...]  # imported before the clock starts
    environment: str | None = None  # a folder of --peers; None: where carbrand is
    does_all: bool = True  # whether its batches are ready for training; the bounds only decode


def report(contender, source):
    """Prints what one contender takes, as JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: source.workers])
    for module in contender.modules:
        importlib.import_module(module)
    start = time.monotonic()
    batches = iter(contender.batches(source))
    first = next(batches)
    first_batch_s = time.monotonic() - start
    if contender.does_all:
        check(np.asarray(first))
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    cpu_before, seen = cpu_s(), 0
    while seen < source.images:
        seen += len(next(batches))
    images_per_cpu_s = seen / (cpu_s() - cpu_before)
    print(json.dumps({"images_per_cpu_s": images_per_cpu_s, "first_batch_s": first_batch_s}), flush=True)


def check(images):
    """That this is a batch of different photos, in whatever range of pixels."""
    assert images.shape == (BATCH, SIZE_PX, SIZE_PX, 3), images.shape
    assert len({image.tobytes() for image in images}) > BATCH / 2, "the same images again and again"
    assert np.isfinite(images).all()
    assert images.std() > 0.1, "these are no photos"


def cpu_s():
    """Of this process and its children, ended ones included."""
    process = psutil.Process()
    return sum(sum(each.cpu_times()[:4]) for each in [process, *process.children(recursive=True)])


def bare(source):
    import tensorflow as tf

    def one_pixel(serialized):
        # Of a size of its own, an image cannot be batched; handed to Python by itself, it would cost more.
        encoded = tf.io.parse_single_example(serialized, {"image/encoded": tf.io.FixedLenFeature([], tf.string)})
        encoded = encoded["image/encoded"]
        begin, size, _ = tf_window(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(encoded, tf.concat([begin[:2], size[:2]], 0), channels=3)[-1, -1]

    dataset = tf.data.TFRecordDataset(source.record_files).repeat().map(one_pixel, tf.data.AUTOTUNE)
    return dataset.batch(BATCH)


def tf_window(shape):
    import tensorflow as tf

    return tf.image.sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        aspect_ratio_range=ASPECT,
        area_range=AREA,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )


def simplejpeg_threads(source):
    import simplejpeg

    def decode(path):
        return simplejpeg.decode_jpeg(pathlib.Path(path).read_bytes())

    paths = itertools.cycle(source.jpeg_files)
    with concurrent.futures.ThreadPoolExecutor(source.workers) as threads:
        while True:
            yield list(threads.map(decode, itertools.islice(paths, BATCH)))


def tfds(source):
    import tensorflow as tf
    import tensorflow_datasets
    from tensorflow_datasets.core.utils import gcs_utils

    gcs_utils._is_gcs_disabled = True
    builder = tensorflow_datasets.builder_from_directory(source.records)
    image = builder.info.features["image"]["encoded"]

    def augmented(example):
        photo = image.decode_example(example["image"]["encoded"])
        begin, size, _ = tf_window(tf.shape(photo))
        photo = tf.image.random_flip_left_right(tf.slice(photo, begin, size))
        photo = tf.image.resize(photo, (SIZE_PX, SIZE_PX))
        return tf.cast(tf.round(photo), tf.uint8)  # bilinear: it stays in 0..255

    # Left encoded until after the shuffling, as its guide to performance says.
    encoded = {"image": {"encoded": tensorflow_datasets.decode.SkipDecoding()}}
    dataset = builder.as_dataset(split="train", shuffle_files=True, decoders=encoded)
    dataset = dataset.repeat().shuffle(SHUFFLE).map(augmented, tf.data.AUTOTUNE)
    return dataset.batch(BATCH).prefetch(tf.data.AUTOTUNE)


def keras_layers(source, *names):
    """With the random layers of these names, of those that `choices` has."""
    import keras
    import tensorflow as tf

    zoom = math.sqrt(AREA[0]) - 1
    choices = {
        "zoom": lambda: keras.layers.RandomZoom((zoom, 0), (zoom, 0)),
        "crop": lambda: keras.layers.RandomCrop(SIZE_PX, SIZE_PX),
        "flip": lambda: keras.layers.RandomFlip("horizontal"),
    }
    layers = keras.Sequential([choices[name]() for name in names])
    # Batches of its own would end with a smaller one, which is the only one of a small folder.
    photos = keras.utils.image_dataset_from_directory(
        source.jpegs, image_size=(256, 256), batch_size=None, verbose=False
    )
    dataset = photos.repeat().batch(BATCH).map(lambda images, labels: layers(images, training=True), tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def keras_crop(source):
    return keras_layers(source, "crop", "flip")


def keras_zoom(source):
    return keras_layers(source, "zoom", "crop", "flip")


def model_garden(source, **augmentation):
    from official.vision.configs import image_classification
    from official.vision.dataloaders import classification_input, input_reader_factory

    params = image_classification.DataConfig(
        input_path=f"{source.records}/*-train.tfrecord*", global_batch_size=BATCH, is_training=True
    )
    parser = classification_input.Parser(
        output_size=[SIZE_PX, SIZE_PX], num_classes=1000, crop_area_range=AREA, **augmentation
    )
    reader = input_reader_factory.input_reader_generator(
        params, decoder_fn=classification_input.Decoder().decode, parser_fn=parser.parse_fn(params.is_training)
    )
    return (images for images, _ in reader.read())


def model_garden_all(source):
    from official.vision.configs import common

    return model_garden(
        source,
        color_jitter=COLOR_JITTER,
        aug_type=common.Augmentation(type="randaug", randaug=common.RandAugment(num_layers=RANDAUGMENT_LAYERS)),
        random_erasing=common.RandomErasing(probability=ERASE_PROBABILITY),
    )


class JpegFolder:
    """A dataset of PyTorch's kind."""

    def __init__(self, paths):
        self._paths = paths

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, index):
        return pillow_augmented(self._paths[index], random.uniform)


def torch_loader(source):
    from torch.utils import data

    paths = source.jpeg_files
    repeats = math.ceil((source.images + (WARM_UP_BATCHES + 20) * BATCH) / len(paths))  # with all that it reads ahead
    loader = data.DataLoader(
        JpegFolder(paths * repeats), batch_size=BATCH, shuffle=True, num_workers=source.workers, drop_last=True
    )
    return iter(loader)


def grain_threads(source):
    import grain

    dataset = grain.MapDataset.source(source.jpeg_files).seed(0).shuffle().repeat()
    dataset = dataset.random_map(lambda path, generator: pillow_augmented(path, generator.uniform))
    options = grain.ReadOptions(num_threads=source.workers, prefetch_buffer_size=2 * BATCH)
    return iter(dataset.to_iter_dataset(options).batch(BATCH))


def pillow_augmented(path, uniform):
    from PIL import Image

    with Image.open(path) as image:
        full = image.size
        left, top, width, height = pillow_window(full, uniform)
        # Decodes at a half, a quarter or an eighth, where the crop still has the pixels then.
        image.draft("RGB", (math.ceil(SIZE_PX * full[0] / width), math.ceil(SIZE_PX * full[1] / height)))
        x, y = (now / before for now, before in zip(image.size, full, strict=True))
        box = (left * x, top * y, min((left + width) * x, image.size[0]), min((top + height) * y, image.size[1]))
        crop = image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=box)
    if uniform(0, 1) < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(crop)


def pillow_window(size, uniform):
    """(left, top, width, height) of a random window: the way of `torchvision.transforms.RandomResizedCrop`."""
    for _ in range(10):
        area = uniform(*AREA) * size[0] * size[1]
        aspect = math.exp(uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width <= size[0] and height <= size[1]:
            return int(uniform(0, size[0] - width)), int(uniform(0, size[1] - height)), width, height
    return 0, 0, *size


def dali(source):
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=BATCH, num_threads=source.workers, device_id=None)
    def pipeline():
        encoded, _ = fn.readers.file(file_root=source.jpegs, random_shuffle=True, initial_fill=SHUFFLE)
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=AREA, random_aspect_ratio=ASPECT, num_attempts=10
        )
        images = fn.resize(images, size=(SIZE_PX, SIZE_PX), antialias=False)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    running = pipeline()
    running.build()
    while True:
        (images,) = running.run()
        yield np.asarray(images.as_tensor())


_MODEL_GARDEN = ("official.vision.dataloaders.classification_input", "official.vision.dataloaders.input_reader_factory")

CONTENDERS = {
    "simplejpeg": Contender(simplejpeg_threads, ("simplejpeg",), does_all=False),
    "bare": Contender(bare, ("tensorflow",), does_all=False),
    "tfds": Contender(tfds, ("tensorflow", "tensorflow_datasets")),
    "keras": Contender(keras_crop, ("tensorflow", "keras")),
    "keras, zoom": Contender(keras_zoom, ("tensorflow", "keras")),
    "model garden": Contender(model_garden, _MODEL_GARDEN, "tf_models"),
    "model garden, all": Contender(model_garden_all, _MODEL_GARDEN, "tf_models"),
    "torch": Contender(torch_loader, ("torch", "torch.utils.data", "PIL.Image"), "others"),
    "grain": Contender(grain_threads, ("grain", "PIL.Image"), "others"),
    "dali": Contender(dali, ("nvidia.dali",), "others"),
}
