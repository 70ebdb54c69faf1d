"""Small evaluations for the tests of what is made from them."""

import numpy as np

from carbrand.evaluation import calibration, metrics
from carbrand.evaluation.results import Evaluation

BRANDS = ["Audi", "BMW", "Kia", "Škoda"]
FACTS = {"run": "runs/a", "dataset fingerprint": "ab12", "split": "test", "checkpoint step": 4500}


def evaluate(labels, probabilities, brands=BRANDS, facts=FACTS, **options):
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    return Evaluation(
        facts=facts,
        metrics=metrics.compute(labels, probabilities, brands),
        calibration=calibration.compute(labels, np.log(np.maximum(probabilities, 1e-300)), 2.0),
        slices=options.pop("slices", []),
        **options,
    )


def probabilities_of(predicted, num_brands=4):
    """0.4 for the predicted brand, 0.2 for each other."""
    return (0.2 + 0.2 * np.eye(num_brands)[predicted]).astype(np.float32)


def small(**options):
    """Six photos: one of three Audis is taken for a BMW, both BMWs for Audis, the Škoda is right, there is no Kia."""
    return evaluate([0, 0, 0, 1, 1, 3], probabilities_of([0, 0, 1, 0, 0, 3]), **options)


def small_rows():
    pairs = zip([0, 0, 0, 1, 1, 3], probabilities_of([0, 0, 1, 0, 0, 3]), strict=True)
    return [
        {
            "filename": f"photo, {i}.jpg",
            "sha256": f"{i:064x}",
            "group": f"group {i}",
            "brand": BRANDS[label],
            "probabilities": probability,
        }
        for i, (label, probability) in enumerate(pairs)
    ]


def all_wrong(num_brands):
    """One photo of each brand, each taken for another one."""
    labels = np.arange(num_brands)
    return evaluate(labels, np.eye(num_brands)[labels[::-1]], [f"brand {label}" for label in labels])
