"""The exponential moving average of the weights, which often classifies better than the last weights do."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf


class WeightAverage:
    """An average of each of `variables`, updated after each step that was applied. Make it in the strategy's scope.

    The decay of update n, from 0, is min(decay, (1 + n) / (10 + n)), so that the first weights are soon forgotten
    (`tf.train.ExponentialMovingAverage`'s warm start). BatchNorm's moving statistics are averages already, and are
    taken from the model.
    """

    def __init__(self, decay: float, variables: list[keras.Variable]) -> None:
        """With `decay` 0 there is nothing to keep."""
        self._strategy = tf.distribute.get_strategy()
        self._decay = decay
        self._variables = variables if decay else []
        self._averages = [tf.Variable(v.numpy(), trainable=False) for v in self._variables]
        self.updates = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self) -> None:
        """Takes in the present weights. Call it outside of the replicas."""
        if not self._averages:
            return
        number = tf.cast(self.updates, tf.float32)
        keep = tf.minimum(self._decay, (1 + number) / (10 + number))
        extended = self._strategy.extended
        for average, variable in zip(self._averages, self._variables, strict=True):
            extended.update(average, _blend, (variable.value, keep))
        self.updates.assign_add(1)

    def restart(self) -> None:
        """Begins anew from the present weights."""
        for average, variable in zip(self._averages, self._variables, strict=True):
            average.assign(variable.numpy())
        self.updates.assign(0)

    def arrays(self) -> dict[str, np.ndarray]:
        """The averages, by the paths of their variables."""
        return {v.path: a.numpy() for v, a in zip(self._variables, self._averages, strict=True)}

    def restore(self, arrays: dict[str, np.ndarray], updates: int) -> None:
        """Goes on from `arrays`, as `arrays()` returned them after so many updates."""
        for average, variable in zip(self._averages, self._variables, strict=True):
            average.assign(arrays[variable.path])
        self.updates.assign(updates)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block, the model's weights are the averages."""
        weights = [variable.numpy() for variable in self._variables]
        for variable, average in zip(self._variables, self._averages, strict=True):
            variable.assign(average.numpy())
        try:
            yield
        finally:
            for variable, value in zip(self._variables, weights, strict=True):
                variable.assign(value)


def _blend(average: tf.Variable, value: tf.Tensor, keep: tf.Tensor) -> None:
    average.assign_sub((1 - keep) * (average - value))  # so that an average of equal values is that value
