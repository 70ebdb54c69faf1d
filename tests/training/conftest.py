"""Eight logical CPU devices, so that tests compute on several replicas. Set before TensorFlow starts."""

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
)
