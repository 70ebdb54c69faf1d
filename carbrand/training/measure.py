"""How fast each part of a training is, each alone and then together: images per second, and per CPU-second."""

import dataclasses
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import simplejpeg
import tensorflow as tf
import tqdm

from carbrand.data import blocks, pipeline
from carbrand.data.reader import RecordReader, Window, WindowReader
from carbrand.training import batches, features
from carbrand.training.cases import Case
from carbrand.training.settings import Phase, inputs_at
from carbrand.training.step import StepResult
from carbrand.training.trainer import Trainer, build_step, build_trainer, set_up_devices

_WINDOWS = 5  # of which the median counts: other work on the machine slows some of them
_BLOCK = 128  # photos that are read or decoded between two looks at the clock
# What only cuts and resizes.
_UNVARIED = {
    "flip": False,
    "color_jitter": 0.0,
    "randaugment_layers": 0,
    "erase_probability": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}

Work = Callable[[], int]  # does some work and returns for how many images


@dataclasses.dataclass(frozen=True)
class Rate:
    """A speed: images per second of wall time, and per second of CPU time of all threads together."""

    images_per_s: float
    images_per_cpu_s: float


def measure(case: Case, seconds: float) -> dict[str, Rate]:
    """The speed of each part of the last phase, for `seconds` each, in the order of the data flow.

    Keys:
      "read", "decode", "augment": From the disk up to there, in one thread. "augment" only where photos are varied.
      "bound": Decoding whole JPEGs, and nothing else, in all threads.
      "input": The batches as training makes them, in all threads.
      "transfer": From the host's memory to the GPUs'; only where there are some.
      "frozen": The forward pass of frozen layers, where the phase is trained on their stored outputs.
      "step": The compiled training step, again and again on one batch.
      "end to end": "input" with "step", or with "frozen" where that is measured.
    """
    rates: dict[str, Rate] = {}
    with pipeline.data_errors():
        parts = _parts(case)
        # disable=None: no bar where stderr is no terminal.
        with tqdm.tqdm(total=len(parts), unit="part", leave=False, disable=None) as bar:
            for name, prepare in parts.items():
                bar.set_description(f"measuring {name}")
                rates[name] = rate(prepare(), seconds)
                bar.update()
    return rates


def rate(work: Work, seconds: float) -> Rate:
    """Repeats `work` for about `seconds`, after a first time that does not count; medians over some windows."""
    work()
    until = time.monotonic() + seconds
    rows: list[tuple[float, float]] = []
    while not rows or time.monotonic() < until:
        images, start_s, start_cpu_s = 0, time.monotonic(), time.process_time()
        while not images or time.monotonic() - start_s < seconds / _WINDOWS:
            images += work()
        elapsed_s, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
        rows.append((images / max(elapsed_s, 1e-9), images / max(cpu_s, 1e-9)))
    return Rate(*(statistics.median(column) for column in zip(*rows, strict=True)))


def _parts(case: Case) -> dict[str, Callable[[], Work]]:
    """What to measure: name -> a function that prepares it."""
    phase, batch_size = case.phases[-1], case.batch_size
    trainer = _trainer(case)
    strategy = trainer.strategy
    parts: dict[str, Callable[[], Work]] = {
        "read": lambda: _reading(case),
        "decode": lambda: _iterating(_in_one_thread(trainer, phase, _UNVARIED), batch_size),
        "augment": lambda: _iterating(_in_one_thread(trainer, phase, {}), batch_size),
        "bound": lambda: _decoding(case),
        "input": lambda: _iterating(_images(trainer, phase), batch_size),
        "transfer": lambda: _calling(_wait_for_copy(strategy), _again_from_host(trainer, phase), batch_size),
    }
    if phase.is_cached or not case.settings.augment.enabled:
        del parts["augment"]
    if not case.machine.gpu_bytes:
        del parts["transfer"]
    _, train_step = build_step(trainer, phase)
    step = _wait_for_step(train_step)
    per_photo: Callable[[Any], Any] = step  # what the images of a batch pass
    if phase.is_cached:
        per_photo = frozen = _frozen(trainer, phase)
        parts["frozen"] = lambda: _calling(frozen, _again(_distributed(trainer, phase)), batch_size)
    parts["step"] = lambda: _calling(step, _step_batches(trainer, phase), batch_size)
    parts["end to end"] = lambda: _calling(per_photo, _distributed(trainer, phase), batch_size)
    return parts


def step_work(trainer: Trainer, phase: Phase) -> Work:
    """The phase's training steps on one batch, again and again."""
    _, train_step = build_step(trainer, phase)
    return _calling(_wait_for_step(train_step), _step_batches(trainer, phase), trainer.batch_size)


def _step_batches(trainer: Trainer, phase: Phase) -> Iterator[Any]:
    """One batch that the phase's step takes, images or features, for ever."""
    images = _distributed(trainer, phase)
    return _again(_feature_batches(trainer, _frozen(trainer, phase), next(images)) if phase.is_cached else images)


def _trainer(case: Case) -> Trainer:
    """The run at its first step, with random weights: others would not be faster or slower."""
    strategy = set_up_devices(case.settings)
    trainer = build_trainer(case.data, pathlib.Path(), case.dataset, case.settings, strategy, loads_weights=False)
    trainer.optimizer.learning_rate.assign(0.0)  # so that nothing explodes on a batch that comes again and again
    return trainer


def _images(trainer: Trainer, phase: Phase) -> tf.data.Dataset:
    """The endless batches of images that the phase reads, at its last image size."""
    if phase.is_cached:
        return batches.image_batches(trainer, "train", is_training=False).repeat()
    last = inputs_at(phase.stop - 1, trainer.manifest.splits["train"].num_examples, trainer.settings)
    return batches.image_batches(trainer, "train", is_training=True, preprocess=last.preprocess)


def _in_one_thread(trainer: Trainer, phase: Phase, changes: dict[str, Any]) -> tf.data.Dataset:
    """`_images` made by one thread, with `changes` to the augmentation."""
    settings = trainer.settings
    changed = dataclasses.replace(
        settings,
        augment=dataclasses.replace(settings.augment, **changes),
        stream=dataclasses.replace(settings.stream, threads=1),
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    return _images(dataclasses.replace(trainer, settings=changed), phase).with_options(options)


def _distributed(trainer: Trainer, phase: Phase) -> Iterator[Any]:
    return iter(trainer.strategy.experimental_distribute_dataset(_images(trainer, phase)))


def _again(values: Iterator[Any]) -> Iterator[Any]:
    """The first of `values`, for ever."""
    return itertools.repeat(next(values))


def _again_from_host(trainer: Trainer, phase: Phase) -> Iterator[Any]:
    """Batches that are copied from the host's memory each time."""
    host_batch = next(iter(_images(trainer, phase)))
    dataset = blocks.finish(tf.data.Dataset.from_tensors(host_batch).repeat())
    return iter(trainer.strategy.experimental_distribute_dataset(dataset))


def _feature_batches(trainer: Trainer, frozen: Callable[[Any], np.ndarray], batch: Any) -> Iterator[Any]:
    outputs = frozen(batch)
    labels = np.zeros(len(outputs), np.int32)
    dataset = features.make_dataset(outputs, labels, batch_size=len(outputs), is_training=True)
    return iter(trainer.strategy.experimental_distribute_dataset(dataset))


def _wait_for_step(train_step: Callable[[Any, tf.Tensor], StepResult]) -> Callable[[Any], float]:
    return lambda batch: float(train_step(batch, tf.constant(0, tf.int64)).loss)


def _frozen(trainer: Trainer, phase: Phase) -> Callable[[Any], np.ndarray]:
    """The frozen layers of a phase, whose outputs are waited for."""
    strategy = trainer.strategy
    forward = features.make_forward(batches.frozen_layers(trainer, phase), strategy)
    return lambda batch: np.concatenate([part.numpy() for part in strategy.experimental_local_results(forward(batch))])


def _wait_for_copy(strategy: tf.distribute.Strategy) -> Callable[[Any], list[Any]]:
    """Looks at one number of each replica's images, which come back only after all of them have gone there."""
    return lambda batch: [part[0, 0, 0, 0].numpy() for part in strategy.experimental_local_results(batch[0])]


def _calling(function: Callable[[Any], Any], values: Iterator[Any], batch_size: int) -> Work:
    def work() -> int:
        function(next(values))
        return batch_size

    return work


def _iterating(dataset: tf.data.Dataset, batch_size: int) -> Work:
    return _calling(lambda batch: batch, iter(dataset), batch_size)


def _reading(case: Case) -> Work:
    """Records in the order in which the run draws them, and nothing done with them."""
    reader = RecordReader(case.data, "train")
    order = pipeline.make_order(reader, case.settings.stream, case.settings.schedule.seed)
    windows = WindowReader(reader, order) if order.blocks else None
    starts = itertools.count(0, _BLOCK)

    def work() -> int:
        numbers = np.arange(_BLOCK) + next(starts)
        sources: Sequence[Window | RecordReader] = windows.windows_of(numbers) if windows else [reader] * _BLOCK
        for source, record in zip(sources, order(numbers).tolist(), strict=True):
            source.read(record)
        return _BLOCK

    return work


def _decoding(case: Case) -> Work:
    reader = RecordReader(case.data, "train")
    count = min(len(reader), _BLOCK)
    photos = [reader.photo(record) for record in range(count)]
    threads = futures.ThreadPoolExecutor(case.threads, thread_name_prefix="decode")

    def work() -> int:
        for _ in threads.map(_decode, photos):
            pass
        return count

    return work


def _decode(photo: bytes) -> None:
    simplejpeg.decode_jpeg(photo, "RGB", fastdct=True, fastupsample=True)  # as `augment.augmented`, but all of it
