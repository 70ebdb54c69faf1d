"""Which devices train, in which precision, and whether every run repeats bit by bit."""

import contextlib
import dataclasses
from collections.abc import Iterator

import gin
import keras
import tensorflow as tf

from carbrand import checks
from carbrand.errors import ConfigError
from carbrand.training import workers
from carbrand.training.workers import Workers

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


@gin.configurable("hardware", module="carbrand")
@dataclasses.dataclass(frozen=True)
class Hardware:
    """Devices and arithmetic.

    Attributes:
      replicas: Copies of the model that share each batch; 0: one per visible GPU, or one on the CPU. Without GPUs, a
        larger number makes as many logical CPU devices, which tests what many GPUs would compute. With several
        workers 0 is the only choice: each takes all GPUs that it sees, or its CPU.
      precision: "float32", "mixed_float16" (with dynamic loss scaling) or "mixed_bfloat16".
      wait_for_workers_s: With several workers (TF_CONFIG): how long to wait for those that are not there yet.
      xla: Compile each replica's forward and backward pass with XLA. Faster on GPUs, 4 times slower on CPUs.
    """

    replicas: int = 0
    precision: str = "float32"
    xla: bool = False
    wait_for_workers_s: float = 300.0

    def __post_init__(self) -> None:
        checks.choice("hardware.precision", self.precision, PRECISIONS)
        checks.number("hardware.replicas", self.replicas, at_least=0, whole=True)
        checks.boolean("hardware.xla", self.xla)
        checks.number("hardware.wait_for_workers_s", self.wait_for_workers_s, above=0)


def make_strategy(hardware: Hardware) -> tf.distribute.Strategy:
    """A MirroredStrategy over the devices asked for.

    Raises:
      ConfigError: More replicas than GPUs, or TensorFlow has already set up fewer logical CPU devices.
    """
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        replicas = hardware.replicas or len(gpus)
        if replicas > len(gpus):
            raise ConfigError(
                f"hardware.replicas={replicas}, but this machine has {len(gpus)} GPUs. Ask for no more, or 0 for all."
            )
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus[:replicas]])
    cpus = _logical_cpus(hardware.replicas or 1)
    # The default reduction keeps state in the process, so that a second strategy object fails in it.
    return tf.distribute.MirroredStrategy(cpus, cross_device_ops=tf.distribute.ReductionToOneDevice())


def make_training_strategy(hardware: Hardware) -> tf.distribute.Strategy:
    """`make_strategy`, or with several workers a MultiWorkerMirroredStrategy, once all of them are there.

    Raises:
      ConfigError: As `make_strategy`, or the replicas of several workers are chosen.
      WorkerError: Other workers did not come.
    """
    here = workers.here()
    if here.count == 1:
        return make_strategy(hardware)
    check_replicas(hardware, here)
    workers.rendezvous(here, hardware.wait_for_workers_s)
    return tf.distribute.MultiWorkerMirroredStrategy()


def check_replicas(hardware: Hardware, among: Workers) -> None:
    """Raises ConfigError where the replicas of several workers are chosen."""
    if among.count > 1 and hardware.replicas:
        raise ConfigError(
            f"hardware.replicas={hardware.replicas} with {among.count} workers: each takes all GPUs that it sees. "
            "Set it to 0."
        )


def workers_of(strategy: tf.distribute.Strategy) -> Workers:
    """The processes that train together by `strategy`."""
    return workers.here() if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) else Workers()


@contextlib.contextmanager
def layers_in(precision: str) -> Iterator[None]:
    """Layers made within the block compute in `precision`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def set_up(seed: int, deterministic: bool) -> None:
    """Seeds Python, numpy and TensorFlow; with `deterministic`, allows only operations that repeat bit by bit."""
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def _logical_cpus(number: int) -> list[str]:
    device = tf.config.list_physical_devices("CPU")[0]
    if number > 1 and not tf.config.get_logical_device_configuration(device):
        try:
            tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * number)
        except RuntimeError as error:
            raise ConfigError(
                f"hardware.replicas={number}: TensorFlow is already initialised with one CPU device. "
                "Make the strategy before any other use of TensorFlow."
            ) from error
    devices = tf.config.list_logical_devices("CPU")
    if number > len(devices):
        raise ConfigError(f"hardware.replicas={number}, but this process was started with {len(devices)} CPU devices.")
    return [device.name for device in devices[:number]]
