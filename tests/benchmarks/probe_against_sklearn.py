"""A run of probe.gin against scikit-learn's LogisticRegression on the same embeddings and splits.

    python tests/benchmarks/probe_against_sklearn.py runs/probe records

Both are trained on the train split; the regularisation of the logistic regression is chosen on the validation split.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression

from carbrand.data import pipeline
from carbrand.data.preprocess import Preprocess
from carbrand.evaluation.bootstrap import wilson_interval
from carbrand.training import checkpoint


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("records")
    options = parser.parse_args()
    model, meta = checkpoint.load_model(options.run)
    embed = keras.Model(model.input, [model.get_layer("pool").output, model.output])
    preprocess = Preprocess(**meta["config"]["preprocess"])
    train, validation, test = (split_of(options.records, s, embed, preprocess) for s in ("train", "validation", "test"))
    candidates = [LogisticRegression(C=c, max_iter=5000).fit(*train[:2]) for c in (0.01, 0.03, 0.1, 0.3, 1, 3)]
    best = max(candidates, key=lambda candidate: candidate.score(*validation[:2]))
    features, labels, ours = test
    print("| classifier | test accuracy, % | 95 % interval |\n|---|---|---|")
    report("carbrand probe", ours.argmax(-1) == labels)
    report(f"LogisticRegression, C={best.C:g}", best.predict(features) == labels)


def split_of(records, split, embed, preprocess):
    features, labels, probabilities = [], [], []
    for images, label in pipeline.make_dataset(records, split, batch_size=32, is_training=False, preprocess=preprocess):
        embedding, probability = embed(images, training=False)
        features.append(embedding.numpy())
        probabilities.append(probability.numpy())
        labels.append(label.numpy())
    return np.concatenate(features), np.concatenate(labels), np.concatenate(probabilities)


def report(name, is_correct):
    interval = wilson_interval(int(is_correct.sum()), len(is_correct))
    print(f"| {name} | {100 * is_correct.mean():.1f} | {100 * interval.low:.1f}-{100 * interval.high:.1f} |")


if __name__ == "__main__":
    main()
