"""What this machine has for a training: cores, memory and GPUs."""

import dataclasses
import os
import pathlib
import re

import tensorflow as tf

_MEMINFO = pathlib.Path("/proc/meminfo")
_CPUINFO = pathlib.Path("/proc/cpuinfo")
_CGROUP = pathlib.Path("/sys/fs/cgroup")  # a container's own limits, version 2
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # as /proc/cpuinfo names the instructions, on x86 and on ARM


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a training can use.

    Attributes:
      cores: That this process may use.
      free_bytes: Host memory that is free or can be freed; None if unknown.
      gpu_bytes: Memory of each visible GPU that TensorFlow would use; None where unknown. Empty: the CPU trains.
      has_bfloat16: The CPU computes in bfloat16 by itself.
    """

    cores: int
    free_bytes: int | None
    gpu_bytes: tuple[int | None, ...] = ()
    has_bfloat16: bool = False

    def replicas(self, asked: int) -> int:
        """Copies of the model when `hardware.replicas` is `asked`."""
        return asked or len(self.gpu_bytes) or 1


def look() -> Machine:
    """This machine. Sets up its GPUs, but no logical CPU devices, whose number may still be chosen."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        free_bytes=_free_bytes(_MEMINFO, _CGROUP),
        gpu_bytes=_gpu_bytes(),
        has_bfloat16=_CPUINFO.exists() and bool(set(_BFLOAT16) & set(_CPUINFO.read_text().split())),
    )


def _free_bytes(meminfo: pathlib.Path, cgroup: pathlib.Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text() if meminfo.exists() else "", re.MULTILINE)
    sizes = [int(found[1]) * 1024] if found else []
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except OSError:  # no such limits here
        limit, used, cached = "max", "0", None
    if limit != "max":
        sizes.append(max(int(limit) - int(used) + (int(cached[1]) if cached else 0), 0))
    return min(sizes, default=None)


def _gpu_bytes() -> tuple[int | None, ...]:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return ()
    from tensorflow.python.client import device_lib  # the public names tell what is used, not what there is

    limits = [device.memory_limit for device in device_lib.list_local_devices() if device.device_type == "GPU"]
    return tuple(limits) if len(limits) == len(gpus) else (None,) * len(gpus)
