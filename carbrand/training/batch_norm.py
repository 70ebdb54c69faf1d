"""BatchNormalization over the batches of all replicas together, without the minutes that Keras's own takes to trace."""

from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import record


@keras.saving.register_keras_serializable("carbrand")
class SynchronizedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer with training moments over all replicas, in one reduction; on one replica it is Keras's own."""

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1 or mask is not None:
            return super()._moments(inputs, mask)
        inputs = tf.cast(inputs, tf.float32)
        axes = self._reduction_axes
        count = tf.cast(tf.size(inputs) // tf.shape(inputs)[self.axis], tf.float32)
        sums = tf.stack([tf.reduce_sum(inputs, axes), tf.reduce_sum(tf.square(inputs), axes)])
        mean, mean_of_squares = tf.unstack(sum_over_replicas(sums) / (count * context.num_replicas_in_sync))
        return mean, tf.maximum(mean_of_squares - tf.square(mean), 0.0)


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """The sum of `value` over the replicas, on each of them; differentiable.

    `ReplicaContext.all_reduce` is a custom gradient, which walks the whole graph so far in each call: tracing the 53 in
    a ResNet-50 took minutes. Recording the operation on the tape needs no walk.
    """
    extended = tf.distribute.get_replica_context().strategy.extended
    with record.stop_recording():
        total = tf.identity(extended._replica_ctx_all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value)))
    # The gradient of a sum over replicas is the sum of their gradients.
    record.record_operation("SumOverReplicas", [total], [value], lambda gradient: [sum_over_replicas(gradient)])
    return total
