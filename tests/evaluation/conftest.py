"""Four logical CPU devices, unless the tests of training asked for more. Set before TensorFlow starts."""

import contextlib

import tensorflow as tf

if not tf.config.get_logical_device_configuration(tf.config.list_physical_devices("CPU")[0]):
    with contextlib.suppress(RuntimeError):
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
        )
