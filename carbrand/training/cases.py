"""A training that may be started, and what it would be and need: known before anything is built."""

import dataclasses
import functools
import pathlib
from collections import Counter
from typing import Any

from carbrand.data import manifest, pipeline
from carbrand.data.preprocess import Preprocess
from carbrand.training import memory
from carbrand.training.checkpoint import Keeping
from carbrand.training.machine import Machine
from carbrand.training.settings import Phase, Settings, nonempty_phases
from carbrand.training.workers import Workers

TIGHT = 0.8  # share of the memory that is there beyond which it may not be enough: needs are known only about
_BUFFERED_BATCHES = 8  # that tf.data holds ready; a guess


@dataclasses.dataclass(frozen=True)
class Case:
    """A training that may be started: settings × data × machine × workers, the folder of its run, what is kept."""

    data: pathlib.Path
    dataset: manifest.Manifest
    settings: Settings
    machine: Machine
    run_dir: pathlib.Path | None = None
    workers: Workers = dataclasses.field(default_factory=Workers)
    keeping: Keeping = dataclasses.field(default_factory=Keeping)

    @property
    def num_photos(self) -> int:
        """Of the train split."""
        return self.photos_in("train")

    @property
    def replicas(self) -> int:
        """Copies of the model, of all workers together."""
        return self.workers.count * self.machine.replicas(self.settings.hardware.replicas)

    @property
    def replicas_here(self) -> int:
        """Those that share this machine's memory."""
        return self.replicas // self.workers.count * self.workers.count_here

    @property
    def batch_size(self) -> int:
        """Photos per step over all replicas."""
        return self.settings.schedule.batch_size

    @property
    def steps_per_epoch(self) -> float:
        """With a fraction, as batches go on over the end of an epoch."""
        return self.num_photos / self.batch_size

    @functools.cached_property
    def phases(self) -> list[Phase]:
        """Those with a step."""
        return nonempty_phases(self.num_photos, self.settings)

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """Height and width of all images that pass the network, in pixels."""
        parts = [Preprocess(image_size_px=size_px) for _, size_px in self.settings.schedule.image_sizes]
        return [preprocess.height_width for preprocess in (self.settings.preprocess, *parts)]

    @property
    def threads(self) -> int:
        """That decode."""
        return self.settings.stream.threads or self.machine.cores

    @property
    def stored_short_px(self) -> float:
        """The short side of the stored photos: the limit that the build had, or about the mean, if that is smaller."""
        statistics, limit = self.dataset.statistics, self.dataset.resize_short_px
        mean = min(statistics["height"]["mean"], statistics["width"]["mean"])
        return mean if limit is None else min(limit, mean)  # photos are never enlarged to the limit

    def photos_in(self, split: str) -> int:
        """0 where there is no such split."""
        return self.dataset.splits[split].num_examples if split in self.dataset.splits else 0


def facts(case: Case) -> dict[str, Any]:
    """What the training would be, in JSON values."""
    return {
        "photos": {split: case.photos_in(split) for split in manifest.SPLITS},
        "brands": len(case.dataset.brands),
        "batch_size": case.batch_size,
        "replicas": case.replicas,
        "batch_per_replica": case.batch_size / case.replicas,
        "steps_per_epoch": case.steps_per_epoch,
        "steps": dict(_steps(case)),
        "device": "GPU" if case.machine.gpu_bytes else "CPU",
        "replica_bytes": round(replica_bytes(case)),
        "input_bytes": batches_bytes(case) + shuffle_bytes(case),
        "disk_bytes": disk_bytes(case),
    }


def _steps(case: Case) -> Counter[str]:
    steps: Counter[str] = Counter()
    for phase in case.phases:
        steps[phase.name] += phase.stop - phase.start
    return steps


def replica_bytes(case: Case, batch: float | None = None) -> float:
    """About the memory that one replica takes at most, in any phase, by default with its share of the batch."""
    settings = case.settings
    return max(
        (
            memory.replica_bytes(
                settings.model,
                settings.optimizer,
                num_brands=len(case.dataset.brands),
                height_width=size,
                batch=case.batch_size / case.replicas if batch is None else batch,
                precision=settings.hardware.precision,
                freeze_until=phase.freeze_until,
            )
            for phase in case.phases
            for size in case.image_sizes
        ),
        default=0.0,
    )


def fitting_batch(case: Case, available: float) -> int:
    """A batch over all replicas that fits well into so many bytes for each of them, a power of two each; 0 if none."""
    fixed = replica_bytes(case, 0)
    each = (TIGHT * available - fixed) / (replica_bytes(case, 1) - fixed)
    return 2 ** (int(each).bit_length() - 1) * case.replicas if each >= 1 else 0


def batches_bytes(case: Case) -> int:
    """About this machine's memory for images: blocks in work, and batches that wait."""
    photo, batch = 3 * max(height * width for height, width in case.image_sizes), case.batch_size // case.workers.count
    each = photo * (batch * _BUFFERED_BATCHES + case.threads * min(batch, pipeline.MAX_BLOCK))
    return case.workers.count_here * each


def shuffle_bytes(case: Case) -> int:
    """This machine's memory for windows to shuffle in."""
    return case.workers.count_here * case.settings.stream.shuffle_mib * 2**20


def free_bytes_each(case: Case) -> float | None:
    """This machine's free memory, shared among the replicas that train on its CPU."""
    free = case.machine.free_bytes
    return None if free is None else free / case.replicas_here


def disk_bytes(case: Case) -> int:
    """Of a run at most: checkpoints, and the features of frozen layers, of which a file per phase and split is kept.

    There are as many checkpoints as are kept, but no more than steps, while one more is written.
    """
    settings, steps = case.settings, case.phases[-1].stop if case.phases else 0
    states = min(case.keeping.last + case.keeping.best, steps) + 1
    state = memory.state_bytes(settings.model, settings.optimizer, len(case.dataset.brands))
    frozen = {phase.freeze_until for phase in case.phases if phase.is_cached}
    photo = sum(memory.feature_bytes(settings.model, settings.preprocess.height_width, until) for until in frozen)
    return states * state + photo * (case.num_photos + case.photos_in("validation"))
