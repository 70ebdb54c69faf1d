"""Config × data × devices before a training: everything that would stop it or spoil it, at once, in seconds.

Nothing is built, traced or written. An error is what no training should start with, a warning what it can live with.
"""

import dataclasses
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence

import h5py

from carbrand import exported
from carbrand.errors import CarbrandError, CheckpointError, ConfigError
from carbrand.training import cases, checkpoint, findings, preflight_data, trainer
from carbrand.training.cases import Case
from carbrand.training.findings import Finding
from carbrand.training.hardware import check_replicas
from carbrand.training.settings import Settings, check_batch, check_unfreeze
from carbrand.training.weights import IMAGENET_FILE

_TOO_MUCH = 1.2  # times the memory that is there; what is needed is known only about


def check(case: Case, unsound: Collection[str] = ()) -> list[Finding]:
    """All findings, errors first.

    Args:
      case: What to look at.
      unsound: Fields of `Settings` that do not hold what the user asked for; what depends on them is not looked at.
    """
    found = [finding for needs, find in _CHECKS if not set(needs.split()) & set(unsound) for finding in find(case)]
    return sorted(found, key=lambda finding: finding.severity)


def _check_batch(case: Case) -> Iterator[Finding]:
    name = "train.run.batch_size"
    try:
        check_batch(case.settings, case.replicas)
    except ConfigError as error:
        yield findings.error(name, str(error))
    if case.batch_size > case.num_photos > 0:
        yield findings.warning(
            name,
            f"{name}={case.batch_size} is more than the {case.num_photos} training photos: a step sees some of them "
            f"more than once. Use {case.replicas * _power_of_two(case.num_photos / 4 / case.replicas)}, for example.",
        )


def _check_steps(case: Case) -> Iterator[Finding]:
    schedule, warmup = case.settings.schedule, case.settings.optimizer.warmup_epochs
    head_epochs = schedule.head_epochs if schedule.head_solver == "sgd" else 0  # else it is one step, however many
    for name, epochs in (("epochs", schedule.epochs), ("head_epochs", head_epochs)):
        if case.num_photos and 0 < epochs * case.steps_per_epoch < 1:
            yield findings.warning(
                f"train.run.{name}",
                f"train.run.{name}={epochs:g}: less than one step of {case.batch_size} with {case.num_photos} training "
                "photos, and one is made. "
                f"Set it to {1 / case.steps_per_epoch:.2g} or more, or lower train.run.batch_size.",
            )
    if warmup > schedule.epochs > 0:
        yield findings.warning(
            "optimizer.warmup_epochs",
            f"optimizer.warmup_epochs={warmup:g} is longer than train.run.epochs={schedule.epochs:g}: the learning "
            f"rate never gets to its peak. Set optimizer.warmup_epochs = {schedule.epochs / 10:.2g}, for example.",
        )


def _check_unfreeze(case: Case) -> Iterator[Finding]:
    try:
        check_unfreeze(case.settings, case.num_photos)
    except ConfigError as error:
        yield findings.error("train.run.unfreeze", str(error))


def _check_image_sizes(case: Case) -> Iterator[Finding]:
    sizes, epochs = case.settings.schedule.image_sizes, case.settings.schedule.epochs
    late = [size for epoch, size in sizes if epoch >= epochs]
    if late:
        yield findings.warning(
            "train.run.image_sizes",
            f"train.run.image_sizes={sizes}: {late[0]} px from an epoch on that train.run.epochs={epochs:g} does not "
            "reach. Let all sizes begin before, or train longer.",
        )
    if sizes and case.phases and case.phases[-1].is_cached:
        yield findings.warning(
            "train.run.image_sizes",
            f"train.run.image_sizes={sizes} has no effect: frozen layers see each photo once, at "
            "preprocess.image_size_px. Remove it, or set augment.enabled = True.",
        )


def _check_unused(case: Case) -> Iterator[Finding]:
    """Settings that were given, and that others keep from having an effect."""
    settings, schedule = case.settings, case.settings.schedule
    learns_head = schedule.head_epochs > 0 and schedule.head_solver == "sgd"
    for group, knob, is_used, remedy in (
        ("loss", "gamma", settings.loss.name == "focal", "loss.name = 'focal'"),
        ("loss", "tau", settings.loss.name == "logit_adjusted", "loss.name = 'logit_adjusted'"),
        ("augment", "mixup_alpha", settings.augment.enabled, "augment.enabled = True"),
        ("augment", "cutmix_alpha", settings.augment.enabled, "augment.enabled = True"),
        ("optimizer", "head_learning_rate", learns_head, "train.run.head_epochs, with head_solver = 'sgd'"),
    ):
        values = getattr(settings, group)
        value, default = getattr(values, knob), getattr(type(values), knob)
        if not is_used and value != default:
            name = f"{group}.{knob}"
            yield findings.warning(name, f"{name}={value!r} has no effect. Set {remedy}, or leave it out.")


def _check_weights(case: Case) -> Iterator[Finding]:
    path, variant = case.settings.weights.path, case.settings.model.variant
    name = "weights.path"
    if path in (None, "random"):
        return
    if path == "imagenet":
        if variant != "v1":
            yield findings.error(
                name, f"{name}='imagenet' is of variant 'v1', model.variant is {variant!r}. Set it to 'v1'."
            )
        if not (pathlib.Path("~/.keras/models").expanduser() / IMAGENET_FILE).exists():
            yield findings.warning(
                name, f"{name}='imagenet' is not on this machine yet: Keras will download it (95 MB)."
            )
        return
    place = pathlib.Path(path)
    if not place.exists():
        yield findings.error(
            name, f"{name}={path!r}: no such file. Give a weights file, a run, an export, or 'imagenet'."
        )
    elif place.is_dir():
        yield from _check_weights_folder(place, variant)
    elif not (zipfile.is_zipfile if place.suffix == ".keras" else h5py.is_hdf5)(place):
        yield findings.error(name, f"{name}={path!r}: not a weights file. Give .weights.h5, .h5 or .keras.")


def _check_weights_folder(folder: pathlib.Path, variant: str) -> Iterator[Finding]:
    name = f"weights.path={str(folder)!r}"
    try:
        if exported.is_export(folder):
            theirs = exported.load(folder).model["variant"]
        elif (folder / checkpoint.FOLDER).is_dir():
            theirs = checkpoint.load_run(folder).meta["config"]["model"]["variant"]
        else:
            yield findings.error(
                "weights.path", f"{name}: neither a run with a checkpoint nor an export. Name one, or a file."
            )
            return
    except CarbrandError as error:
        yield findings.error("weights.path", f"{name}: {error}")
        return
    if theirs != variant:
        yield findings.error("weights.path", f"{name} is of variant {theirs!r}. Set model.variant = {theirs!r}.")


def _check_devices(case: Case) -> Iterator[Finding]:
    hardware, gpus = case.settings.hardware, len(case.machine.gpu_bytes)
    try:
        check_replicas(hardware, case.workers)
    except ConfigError as error:
        yield findings.error("hardware.replicas", str(error))
    if gpus and hardware.replicas > gpus:
        yield findings.error(
            "hardware.replicas",
            f"hardware.replicas={hardware.replicas}, but this machine has {gpus} GPUs. Ask for no more, or 0 for all.",
        )
    if not gpus and hardware.replicas > 1:
        yield findings.warning(
            "hardware.replicas",
            f"hardware.replicas={hardware.replicas} without a GPU: logical CPU devices, for tests only; they are "
            "slower than one. Set hardware.replicas = 0.",
        )
    if not gpus and hardware.precision == "mixed_float16":
        yield findings.warning(
            "hardware.precision",
            "hardware.precision='mixed_float16' without a GPU is slow, and overflows at first. Set 'float32', or "
            "'mixed_bfloat16'.",
        )
    if not gpus and hardware.xla:
        yield findings.warning(
            "hardware.xla", "hardware.xla=True without a GPU: about 4 times slower. Set it to False."
        )


def _check_xla(case: Case) -> Iterator[Finding]:
    hardware, model = case.settings.hardware, case.settings.model
    is_synchronized = model.synchronized_batch_norm and model.freeze_until != "conv5"
    if hardware.xla and is_synchronized and case.replicas > 1:
        yield findings.error(
            "hardware.xla",
            f"hardware.xla=True with {case.replicas} replicas: XLA cannot synchronise BatchNorm across them. Set "
            "model.synchronized_batch_norm = False (statistics are then averaged after each step).",
        )


def _check_shuffle(case: Case) -> Iterator[Finding]:
    shuffle_mib, free = case.settings.stream.shuffle_mib, case.machine.free_bytes
    here = case.workers.count_here
    split_mib = sum(shard.bytes for shard in case.dataset.splits["train"].shards) / 2**20
    if free is not None and cases.shuffle_bytes(case) > free:
        each = f" of each of {here} workers" if here > 1 else ""
        yield findings.error(
            "stream.shuffle_mib",
            f"stream.shuffle_mib={shuffle_mib}{each}: {free / 2**20:.0f} MiB of memory are free. Use 0 on a local "
            f"disk, {_power_of_two(free / 2**22 / here)} on a network disk.",
        )
    if shuffle_mib > split_mib:
        yield findings.warning(
            "stream.shuffle_mib",
            f"stream.shuffle_mib={shuffle_mib} is more than the train split's {split_mib:.0f} MiB. Use 0, which "
            "shuffles all of it without memory.",
        )


def _check_memory(case: Case) -> Iterator[Finding]:
    each = cases.replica_bytes(case)  # windows to shuffle in have their own check
    gpus = case.machine.gpu_bytes[: case.replicas]
    for number, available in enumerate(gpus):
        yield from _compare(case, f"GPU {number}", each, available)
    needed = cases.batches_bytes(case) + (0 if gpus else case.replicas_here * each)
    yield from _compare(case, "the host", needed, case.machine.free_bytes)


def _compare(case: Case, device: str, needed: float, available: int | None) -> Iterator[Finding]:
    if available is None or needed <= cases.TIGHT * available:
        return
    make = findings.error if needed > _TOO_MUCH * available else findings.warning
    fitting = cases.fitting_batch(case, available if device.startswith("GPU") else available / case.replicas_here)
    fits = f"train.run.batch_size = {fitting}, " if fitting else ""
    yield make(
        device,
        f"{device}: training with train.run.batch_size={case.batch_size} takes about {needed / 1e9:.1f} GB, "
        f"{available / 1e9:.1f} GB are free. Try {fits}smaller preprocess.image_size_px, or more frozen stages "
        "(model.freeze_until).",
    )


def _check_disk(case: Case) -> Iterator[Finding]:
    run_dir = (case.run_dir or pathlib.Path()).absolute()
    folder = next(path for path in (run_dir, *run_dir.parents) if path.is_dir())
    needed, free = cases.disk_bytes(case), shutil.disk_usage(folder).free
    surely = cases.disk_bytes(dataclasses.replace(case, keeping=checkpoint.Keeping(last=1)))
    if needed > free:
        make = findings.error if surely > free else findings.warning  # a short run never has all that it may keep
        yield make(
            os.fspath(folder),
            f"{folder}: checkpoints and stored features take about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free. Free some space, write the run elsewhere, or lower train.run.keep_last and keep_best.",
        )


def _check_run(case: Case) -> Iterator[Finding]:
    if case.run_dir is None:
        return
    try:
        state = checkpoint.load_latest(case.run_dir)
        if state is not None:
            trainer.check_same(case.run_dir, state.meta, trainer.meta_of(case.dataset, case.settings, case.replicas))
    except CheckpointError as error:
        yield findings.error("--run", str(error))


# Which fields of the settings each check looks at, and what it finds.
_CHECKS: Sequence[tuple[str, Callable[[Case], Iterator[Finding]]]] = (
    ("", preflight_data.check_files),
    ("", preflight_data.check_splits),
    ("", preflight_data.check_brands),
    ("stream", preflight_data.check_imbalance),
    ("schedule hardware augment", _check_batch),
    ("schedule optimizer", _check_steps),
    ("schedule model augment", _check_unfreeze),
    ("schedule model augment", _check_image_sizes),
    ("schedule loss augment optimizer", _check_unused),
    ("schedule preprocess", preflight_data.check_upscaling),
    ("weights model", _check_weights),
    ("hardware", _check_devices),
    ("hardware model", _check_xla),
    ("stream", _check_shuffle),
    ("schedule model preprocess optimizer hardware stream", _check_memory),
    ("schedule model preprocess optimizer augment keeping", _check_disk),
    (" ".join(field.name for field in dataclasses.fields(Settings)), _check_run),
)


def _power_of_two(limit: float) -> int:
    """The largest that is not above `limit`, or 1."""
    return 2 ** (max(int(limit), 1).bit_length() - 1)
