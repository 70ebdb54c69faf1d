"""Eight logical CPU devices, so that tests compute on several replicas. Set before TensorFlow starts."""

import pytest
import tensorflow as tf
from tensorflow.python.framework.config import disable_op_determinism  # no public name undoes what training sets

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
)


@pytest.fixture(autouse=True)
def no_determinism_of_other_tests():
    """Training makes operations deterministic for its process, which is all tests' here; Keras then leaves out XLA."""
    yield
    disable_op_determinism()
