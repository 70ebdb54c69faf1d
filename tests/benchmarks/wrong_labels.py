"""How well does `carbrand review --data` find wrong labels?

    python tests/benchmarks/wrong_labels.py --model MODEL --data RECORDS

Gives 5 % of the photos another brand by chance, five times, and prints how many of them are among the photos that come
first, beside what chance would find, and what the thresholds of confident learning (Northcutt et al. 2021,
arXiv:1911.00068) suspect from the same probabilities. Labels that are wrong already count as right ones.
"""

import argparse

import numpy as np

from carbrand.monitoring import review, suspects

WRONG = 0.05
SEEDS = 5


def confident_learning(found, labels):
    """Which photos [N] bool are more probable to be of another brand than photos of that brand are on average."""
    brands = range(found.shape[1])
    thresholds = [found[labels == brand, brand].mean() for brand in brands]
    above = np.where(found >= thresholds, found, -1)
    return (above.max(axis=1) > 0) & (above.argmax(axis=1) != labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an exported model")
    parser.add_argument("--data", required=True, help="its records")
    options = parser.parse_args()
    photos = list(review.photos_of(options.data))
    features = review.features_of(options.model, photos)
    groups = np.array([photo.row.group for photo in photos])
    brands, truth = np.unique([photo.row.brand for photo in photos], return_inverse=True)
    num_wrong = round(WRONG * len(truth))
    rows = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        labels = truth.copy()
        places = rng.permutation(len(labels))[:num_wrong]
        labels[places] = (labels[places] + rng.integers(1, len(brands), num_wrong)) % len(brands)
        is_wrong = labels != truth
        found = suspects.probabilities(features, labels, groups)
        ranked = is_wrong[np.argsort(suspects.margins(found, labels), kind="stable")]
        suspected = confident_learning(found, labels)
        rows.append(
            [
                (found.argmax(axis=1) == truth).mean(),
                ranked[:num_wrong].mean(),
                ranked[: 2 * num_wrong].sum() / num_wrong,
                suspected.mean(),
                is_wrong[suspected].mean(),
                is_wrong[suspected].sum() / num_wrong,
            ]
        )
    accuracy, *of_ranked, suspected, precision, recall = np.mean(rows, axis=0)
    print(f"{len(truth)} photos of {len(brands)} brands, {num_wrong} with a wrong label, means of {SEEDS} draws")
    print(f"accuracy of the classifiers, by the right labels: {accuracy:.1%}")
    print(f"of the first {num_wrong} photos {of_ranked[0]:.1%} have one (by chance: {num_wrong / len(truth):.1%})")
    print(
        f"among the first {2 * num_wrong} are {of_ranked[1]:.1%} of them (by chance: {2 * num_wrong / len(truth):.1%})"
    )
    print(f"confident learning suspects {suspected:.1%} of all; of these {precision:.1%} have one; it has {recall:.1%}")


if __name__ == "__main__":
    main()
