"""A model card of facts alone (Mitchell et al. 2019, arXiv:1810.03993).

A fact or a number that is missing is an error, not a blank.
"""

import math

import jinja2

from carbrand import templates
from carbrand.data.manifest import Manifest
from carbrand.errors import DataError
from carbrand.evaluation import confusion
from carbrand.evaluation.results import Evaluation
from carbrand.evaluation.trained import Trained
from carbrand.training.settings import by_gin_name

FILE_NAME = "model_card.md"
NUM_PAIRS = 5  # of brands that are taken for each other
NUM_SLICES = 3


def render(evaluation: Evaluation, dataset: Manifest, model: Trained) -> str:
    """The card in Markdown.

    Args:
        evaluation: of `model`.
        dataset: that it was evaluated on.
        model: whose config is told, as far as it is known.

    Raises:
        DataError: a number or a fact that the card tells is missing.
    """
    intervals = evaluation.metrics.intervals

    def percent(share: float | None) -> str:
        if share is None or not math.isfinite(share):
            raise DataError(f"{model.folder}: a number of its model card is {share}. Evaluate it on more photos.")
        return f"{100 * share:.1f}"

    def interval(name: str) -> str:
        if name not in intervals:
            raise DataError(f"{model.folder}: {name} of its model card has no interval. Evaluate it on more photos.")
        return f"{percent(intervals[name].low)} to {percent(intervals[name].high)}"

    height, width = model.preprocess.height_width
    try:
        return templates.load("carbrand.evaluation", FILE_NAME).render(
            facts=evaluation.facts,
            metrics=evaluation.metrics,
            calibration=evaluation.calibration,
            slices=evaluation.slices[:NUM_SLICES],
            pairs=confusion.pairs(evaluation.metrics)[:NUM_PAIRS],
            dataset=dataset,
            config=model.config,
            settings=by_gin_name(model.config),
            height=height,
            width=width,
            percent=percent,
            interval=interval,
        )
    except jinja2.UndefinedError as error:
        raise DataError(f"{model.folder}: its model card lacks a fact ({error}). Train or export it again.") from error
