"""What an evaluation adds to the bare forward pass over the same photos.

    python tests/benchmarks/evaluation_speed.py --data RECORDS --run RUN [--split train]

Bare is the compiled network on batches that lie decoded in memory. The whole is `carbrand.evaluate` once the model is
loaded: reading, decoding, the same forward pass, all numbers with their intervals, and every file of the report, heat
maps and photos among them. Rounds are interleaved; the median of the ratios within each round counts. Wall time, and
CPU time of all threads, since others may be at work on the machine.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from carbrand.data import pipeline
from carbrand.data.preprocess import Preprocess
from carbrand.evaluation import evaluate, trained
from carbrand.training import checkpoint, features, hardware

BATCH = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="records")
    parser.add_argument("--split", default="train", help="of the records (default: %(default)s)")
    parser.add_argument("--run", required=True, help="to evaluate; trained on these records")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, pathlib.Path(folder) / "report")


def measure(options, output):
    strategy = hardware.make_strategy(hardware.Hardware())
    with strategy.scope():
        model, meta = checkpoint.load_model(options.run)
    forward = features.make_forward(model, strategy)
    dataset = pipeline.make_dataset(
        options.data,
        options.split,
        batch_size=BATCH,
        is_training=False,
        preprocess=Preprocess(**meta["config"]["preprocess"]),
        pad_last=True,
    )
    batches = list(dataset)
    loaded = trained.load(options.run, None)
    trained.load = lambda *_: loaded

    def bare():
        for batch in batches:
            forward(batch)

    def whole():
        evaluate.run(options.data, run_dir=options.run, split=options.split, output=output, batch_size=BATCH)

    rounds = []
    for number in range(options.rounds + 1):
        spans = {}
        for way in (bare, whole):
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            spans[way.__name__] = (time.perf_counter() - wall, time.process_time() - cpu)
        if number:  # the first one traces
            rounds.append(spans)
    for place, name in enumerate(("wall", "CPU")):
        seconds = {way: statistics.median(spans[way][place] for spans in rounds) for way in ("bare", "whole")}
        ratio = statistics.median(spans["whole"][place] / spans["bare"][place] for spans in rounds)
        print(f"{name}: bare {seconds['bare']:.1f} s, whole {seconds['whole']:.1f} s, ratio {ratio:.3f}")
    print(f"{sum(int(tf.shape(batch[1])[0]) for batch in batches)} photos with padding, batches of {BATCH}")


if __name__ == "__main__":
    main()
