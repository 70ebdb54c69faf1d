"""Size, reading speed and accuracy of a dataset by the stored short side: how the default of --resize_short was chosen.

    python tests/benchmarks/resize_short.py PHOTOS --weights resnet50.weights.h5 --variant v1.5

Accuracy is that of a logistic regression on the embeddings of all photos at 224 px, by 5-fold cross-validation; speed
is that of the training pipeline (read, decode, crop, flip, resize to 224 px) in images per CPU-second, the median of
three runs.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score

from beam_jobs import build_dataset, build_output
from carbrand.data import manifest, pipeline
from carbrand.data.preprocess import Preprocess
from carbrand.evaluation.bootstrap import wilson_interval
from carbrand.training import weights
from carbrand.training.model import ModelSpec, build_model

_WHOLE = Preprocess(image_size_px=224, crop_fraction=1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--variant", default="v1")
    parser.add_argument("--sizes", default="128,192,224,256,320,0", help="short sides in pixels; 0: as they are")
    options = parser.parse_args()
    model = build_model(("a", "b"), ModelSpec(variant=options.variant), image_size_px=(224, 224))
    weights.load(model, options.weights, options.variant)
    embed = keras.Model(model.input, model.get_layer("pool").output)
    print(
        "| short side, px | kB per photo | images per CPU-second | accuracy, % | 95 % interval |\n|---|---|---|---|---|"
    )
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            print(row(options.photos, pathlib.Path(folder) / "records", size or None, embed), flush=True)


def row(photos, folder, size, embed):
    built = build_dataset.run(photos, folder, build_output.Choices(resize_short_px=size))
    total = sum(shard.bytes for split in built.splits.values() for shard in split.shards)
    speed = statistics.median(images_per_cpu_s(folder) for _ in range(3))
    accuracy, interval = cross_validated(folder, embed)
    return (
        f"| {size or 'own'} | {total / built.counts['kept'] / 1000:.1f} | {speed:.0f} | {100 * accuracy:.1f} | "
        f"{100 * interval.low:.1f}-{100 * interval.high:.1f} |"
    )


def images_per_cpu_s(folder, batch_size=64, steps=20):
    batches = iter(
        pipeline.make_dataset(folder, "train", batch_size=batch_size, preprocess=Preprocess(), num_steps=steps)
    )
    next(batches)
    start = time.process_time()
    count = sum(len(images) for images, _ in batches)
    return count / (time.process_time() - start)


def cross_validated(folder, embed):
    features, labels = [], []
    for split in manifest.SPLITS:
        for images, label in pipeline.make_dataset(folder, split, batch_size=32, is_training=False, preprocess=_WHOLE):
            features.append(embed(images, training=False).numpy())
            labels.append(label.numpy())
    features, labels = np.concatenate(features), np.concatenate(labels)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(LogisticRegression(max_iter=2000), features, labels, cv=folds)
    return scores.mean(), wilson_interval(round(scores.mean() * len(labels)), len(labels))


if __name__ == "__main__":
    main()
