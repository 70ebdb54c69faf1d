"""What our training adds to the network itself: per step, from records instead of from memory, and for checkpoints.

    python tests/benchmarks/training_speed.py step
    python tests/benchmarks/training_speed.py end_to_end --data RECORDS
    python tests/benchmarks/training_speed.py checkpoint --data RECORDS

`step` compares, on one replica with the same ResNet-50, optimizer and batch in memory: our step, with the look at its
result that the loop takes; a bare compiled `tf.function` of forward, backward and `optimizer.apply`; and `model.fit`,
timed by its callbacks from the end of one batch to the end of the next. Its Keras BatchNorm computes the same.

`end_to_end` is the training of images with all augmentation, from records, and on one batch in memory again and again.

`checkpoint` is the time for which training stands still when the state of a ResNet-50 with momentum and averages is
saved, as a share of the default interval.

Rounds are interleaved; the ratios are those within each round, and their median counts. Wall time, and CPU time of all
threads, since others may be at work on the machine.
"""

import argparse
import dataclasses
import itertools
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from carbrand.data import manifest
from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.training import batches, checkpoint, trainer
from carbrand.training.hardware import Hardware, make_strategy
from carbrand.training.model import ModelSpec, build_model, logits_model
from carbrand.training.optimizer import OptimizerSpec, build_optimizer
from carbrand.training.settings import Schedule, Settings, plan
from carbrand.training.step import LossScale, make_step
from carbrand.training.weights import Weights

BRANDS = tuple(f"brand {number}" for number in range(20))
SPEC = OptimizerSpec(weight_decay=1e-4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "end_to_end", "checkpoint"))
    parser.add_argument("--data", type=pathlib.Path, help="records, for end_to_end and checkpoint")
    parser.add_argument("--size", type=int, default=128, help="side of the images, in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="photos per step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="of each, in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    {"step": steps, "end_to_end": end_to_end, "checkpoint": checkpoints}[options.what](options)


def steps(options):
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, (options.batch, options.size, options.size, 3), np.uint8))
    labels = tf.constant(rng.integers(0, len(BRANDS), options.batch, np.int32))
    ways = {
        "carbrand": ours(images, labels),
        "bare tf.function": bare(images, labels),
        "model.fit": fit(images, labels, options.steps),
    }
    compare(ways, options)


def network():
    keras.utils.set_random_seed(0)
    return logits_model(build_model(BRANDS, ModelSpec(synchronized_batch_norm=False)))


def ours(images, labels):
    strategy = make_strategy(Hardware(replicas=1))
    with strategy.scope():
        model = network()
        optimizer = build_optimizer(SPEC, model.trainable_variables)
        step = make_step(model, optimizer, LossScale("float32"), strategy, spec=SPEC)
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    source = iter(strategy.distribute_datasets_from_function(lambda _: dataset))

    def run(count):
        for number in range(count):
            result = step(next(source), tf.constant(number, tf.int64))
            float(result.gradient_norm)

    return run


def bare(images, labels):
    model = network()
    variables = model.trainable_variables
    optimizer = keras.optimizers.SGD(SPEC.learning_rate, 0.9, nesterov=True, weight_decay=SPEC.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    source = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())

    def run(count):
        for _ in range(count):
            float(step(*next(source)))

    return run


def fit(images, labels, count):
    model = network()
    optimizer = keras.optimizers.SGD(SPEC.learning_rate, 0.9, nesterov=True, weight_decay=SPEC.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()

    class Times(keras.callbacks.Callback):
        ends = ()

        def on_train_batch_end(self, batch, logs=None):
            self.ends += ((time.perf_counter(), time.process_time()),)

    def run(count):
        times = Times()
        model.fit(dataset, steps_per_epoch=count + 1, epochs=1, verbose=0, callbacks=[times])
        return [last - first for first, last in zip(times.ends[0], times.ends[-1], strict=True)]

    return run


def compare(ways, options):
    """Runs each of `ways` in turns; prints seconds per step, and how the first compares with the others."""
    rounds = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name in sorted(ways, key=lambda name: (number + list(ways).index(name)) % len(ways)):
            wall, cpu = time.perf_counter(), time.process_time()
            spans = ways[name](options.steps) or (time.perf_counter() - wall, time.process_time() - cpu)
            if number:  # the first one traces
                rounds[name].append([span / options.steps for span in spans])
    first = next(iter(ways))
    print(f"{'':<18} {'ms per step':>12} {'CPU ms':>8} {'its time / ours':>16} {'its CPU / ours':>15}")
    for name, rows in rounds.items():
        medians = [1000 * statistics.median(column) for column in zip(*rows, strict=True)]
        ratios = [
            statistics.median(theirs / mine for theirs, mine in zip(*columns, strict=True))
            for columns in zip(zip(*rows, strict=True), zip(*rounds[first], strict=True), strict=True)
        ]
        print(f"{name:<18} {medians[0]:>12.1f} {medians[1]:>8.1f} {ratios[0]:>16.3f} {ratios[1]:>15.3f}")


def end_to_end(options):
    run = run_on_records(options, pathlib.Path())
    (phase,) = (phase for phase in plan(run.manifest.splits["train"].num_examples, run.settings) if phase.stop)
    _, step = trainer.build_step(run, phase)
    records = batches.training_batches(run, phase, batches.source(run, phase))
    memory = itertools.repeat(next(records))

    def training(source):
        def go(count):
            for number in range(count):
                float(step(next(source), tf.constant(number, tf.int64)).gradient_norm)

        return go

    compare({"from records": training(records), "from memory": training(memory)}, options)


def checkpoints(options):
    with tempfile.TemporaryDirectory() as folder:
        run = run_on_records(options, pathlib.Path(folder))
        seconds = []
        for _ in range(options.rounds):
            run.step += 1
            start = time.perf_counter()
            trainer.save(run)
            seconds.append(time.perf_counter() - start)
        size = max(path.stat().st_size for path in (run.run / checkpoint.FOLDER).iterdir())
    stall, interval = statistics.median(seconds), run.keeping.every_s
    print(f"{size / 2**20:.0f} MiB, {stall:.2f} s, every {interval:.0f} s: {stall / interval:.2%} of the time")


def run_on_records(options, folder):
    settings = Settings(
        model=ModelSpec(),
        weights=Weights("random"),
        preprocess=Preprocess(image_size_px=options.size),
        augment=Augment(color_jitter=0.2),
        stream=Stream(),
        optimizer=dataclasses.replace(SPEC, ema_decay=0.99),
        hardware=Hardware(),
        schedule=Schedule(10_000, 0, options.batch, 0, False),
    )
    dataset, strategy = manifest.load(options.data), trainer.set_up_devices(settings)
    return trainer.build_trainer(options.data, folder, dataset, settings, strategy, loads_weights=False)


if __name__ == "__main__":
    main()
