"""carbrand: from a folder of labelled car photos to a brand classifier in production.

The names below are the public Python interface. They are resolved on first use, so that `import carbrand` loads
neither TensorFlow nor Beam nor gin.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Augment": "carbrand.data.augment",
    "CarbrandError": "carbrand.errors",
    "Hardware": "carbrand.training.hardware",
    "Loss": "carbrand.training.losses",
    "ModelSpec": "carbrand.training.model",
    "OptimizerSpec": "carbrand.training.optimizer",
    "Predictor": "carbrand.serving.predictor",
    "Preprocess": "carbrand.data.preprocess",
    "Stream": "carbrand.data.pipeline",
    "Weights": "carbrand.training.weights",
    "build_model": "carbrand.training.model",
    "evaluate": "carbrand.evaluation.evaluate:run",
    "export": "carbrand.serving.export:run",
    "make_dataset": "carbrand.data.pipeline",
    "monitor": "carbrand.monitoring.monitor:run",
    "review": "carbrand.monitoring.review:run",
    "train": "carbrand.training.train:run",
    "tune": "carbrand.training.tune:run",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'carbrand' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return __all__
