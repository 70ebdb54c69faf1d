"""Which score tells photos of unknown things from photos of known brands?

    python tests/benchmarks/unknown_brands.py --run RUN --data RECORDS --others FOLDER

Prints, for several scores, the area under the ROC curve, and the share that is found where one known photo in twenty
is called unknown: for the pictures in a folder of other things, by the run's own head; and for brands left out, by
linear heads on half of the brands, means of six draws.
"""

import argparse
import pathlib

import numpy as np
import sklearn.linear_model
import sklearn.metrics
import sklearn.preprocessing
from scipy.special import logsumexp, softmax

from carbrand.data import images, manifest
from carbrand.data.preprocess import Preprocess
from carbrand.data.reader import RecordReader
from carbrand.serving import parity
from carbrand.serving.graph import network_of
from carbrand.training import checkpoint


def nearest(features, known):
    directions, others = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, known))
    return -(directions @ others.T).max(axis=1)


SCORES = {  # (features, logits, features of known photos) -> how strange
    "energy": lambda features, logits, known: -logsumexp(logits, axis=1),
    "largest logit": lambda features, logits, known: -logits.max(axis=1),
    "largest probability": lambda features, logits, known: -softmax(logits, axis=1).max(axis=1),
    "nearest known photo": lambda features, logits, known: nearest(features, known),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="of a model with a linear head")
    parser.add_argument("--data", required=True, help="its records")
    parser.add_argument("--others", required=True, type=pathlib.Path, help="folder of pictures without cars")
    options = parser.parse_args()
    model, meta = checkpoint.load_model(options.run)
    network, preprocess = network_of(model), Preprocess(**meta["config"]["preprocess"])
    dataset = manifest.load(options.data)

    def photos_of(split):
        return [photo.encoded for photo in parity.read(options.data, dataset, (split,), 10**6)]

    def outputs(photos):
        inputs = parity.network_inputs(preprocess, photos)
        rows = [network(inputs[start : start + 16], training=False) for start in range(0, len(inputs), 16)]
        return tuple(np.concatenate(column) for column in zip(*rows, strict=True))

    split = {name: outputs(photos_of(name)) for name in ("validation", "test")}
    others = outputs(list(_readable(options.others, meta)))
    print(f"{len(others[0])} pictures of other things, {len(split['test'][0])} test photos")
    for name, score in SCORES.items():
        print(f"{name:<20}", _row(*(score(*part, split["validation"][0]) for part in (split["test"], others))))
    features = np.concatenate([split[name][0] for name in ("validation", "test")])
    labels = np.concatenate([RecordReader(options.data, name).labels for name in ("validation", "test")])
    rows = {name: [] for name in SCORES}
    for seed in range(6):
        for name, pair in _left_out(features, labels, np.random.default_rng(seed)).items():
            rows[name].append(pair)
    print("brands that are left out")
    for name, pairs in rows.items():
        print(f"{name:<20}", "AUROC {:.3f}, found {:.1%}".format(*np.mean([_numbers(*pair) for pair in pairs], axis=0)))


def _left_out(features, labels, random):
    known_brands = random.permutation(labels.max() + 1)[: (labels.max() + 1) // 2]
    is_known = np.isin(labels, known_brands)
    rows = random.permutation(np.flatnonzero(is_known))
    train, test, unknown = rows[: len(rows) * 3 // 4], rows[len(rows) * 3 // 4 :], np.flatnonzero(~is_known)
    scaler = sklearn.preprocessing.StandardScaler().fit(features[train])
    head = sklearn.linear_model.LogisticRegression(C=0.003, max_iter=500)
    head.fit(scaler.transform(features[train]), labels[train])

    def of(score, part):
        return score(features[part], head.decision_function(scaler.transform(features[part])), features[train])

    return {name: (of(score, test), of(score, unknown)) for name, score in SCORES.items()}


def _readable(folder, meta):
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            yield images.normalise(path.read_bytes(), resize_short_px=meta["resize_short_px"]).encoded
        except images.Rejected:
            continue


def _numbers(known, unknown):
    truth = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
    found = (unknown > np.quantile(known, 0.95)).mean()
    return sklearn.metrics.roc_auc_score(truth, np.r_[known, unknown]), found


def _row(known, unknown):
    return "AUROC {:.3f}, found {:.1%}".format(*_numbers(known, unknown))


if __name__ == "__main__":
    main()
