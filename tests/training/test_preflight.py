import dataclasses
import pathlib
import shutil

import keras
import numpy as np
import pytest

from carbrand import config
from carbrand.data import manifest
from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.training import cases, checkpoint, draft, machine, memory, preflight, train
from carbrand.training.cases import Case
from carbrand.training.hardware import Hardware
from carbrand.training.losses import Loss
from carbrand.training.machine import Machine
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OPTIMIZERS, OptimizerSpec, build_optimizer
from carbrand.training.settings import Schedule, Settings
from carbrand.training.weights import Weights
from carbrand.training.workers import Workers

CPU = Machine(cores=2, free_bytes=8 * 10**9)
TWO_GPUS = Machine(cores=8, free_bytes=8 * 10**9, gpu_bytes=(10**10, 10**10))


def schedule(**changes):
    return Schedule(**{"epochs": 2, "head_epochs": 0, "batch_size": 8, "seed": 0, "deterministic": True, **changes})


@pytest.fixture
def case(drawn_records):
    settings = Settings(
        model=ModelSpec(),
        weights=Weights("random"),
        preprocess=Preprocess(image_size_px=64),
        augment=Augment(),
        stream=Stream(),
        optimizer=OptimizerSpec(),
        hardware=Hardware(),
        schedule=schedule(),
    )
    return Case(drawn_records, manifest.load(drawn_records), settings, CPU)


def changed(case, *, machine=None, **groups):
    settings = dataclasses.replace(case.settings, **groups)
    return dataclasses.replace(case, settings=settings, machine=machine or case.machine)


def with_train(case, **changes):
    splits = {**case.dataset.splits, "train": dataclasses.replace(case.dataset.splits["train"], **changes)}
    return dataclasses.replace(case, dataset=dataclasses.replace(case.dataset, splits=splits))


def messages(case):
    return [str(finding) for finding in preflight.check(case)]


def test_a_stage_that_never_thaws_is_an_error(case):
    frozen = changed(case, model=ModelSpec(freeze_until="none"), schedule=schedule(unfreeze=(("conv4", 1.999),)))
    assert any("conv4 would thaw at step" in message for message in messages(frozen))


def only(case):
    (message,) = messages(case)
    return message


def test_a_sound_training_has_no_finding(case):
    assert messages(case) == []


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (
            {"schedule": schedule(batch_size=7), "hardware": Hardware(replicas=2), "machine": TWO_GPUS},
            "error: train.run.batch_size=7 does not divide among 2 replicas. Use a multiple of 2, for example 8.",
        ),
        (
            {"schedule": schedule(batch_size=6), "augment": Augment(mixup_alpha=0.2), "machine": TWO_GPUS},
            "error: train.run.batch_size=6 does not divide among 2 replicas in pairs to be mixed. Use a multiple of 4",
        ),
        (
            {"schedule": schedule(accumulate=3)},
            "error: train.run.batch_size=8 does not divide among 1 replicas and train.run.accumulate=3 micro-batches",
        ),
        ({"schedule": schedule(batch_size=32)}, "warning: train.run.batch_size=32 is more than the 22 training photos"),
        (
            {"schedule": schedule(epochs=0.1)},
            "warning: train.run.epochs=0.1: less than one step of 8 with 22 training photos, and one is made. Set "
            "it to 0.36 or more",
        ),
        (
            {"optimizer": OptimizerSpec(warmup_epochs=3)},
            "warning: optimizer.warmup_epochs=3 is longer than train.run.epochs=2: the learning rate never",
        ),
        (
            {"schedule": schedule(image_sizes=((0, 32), (2, 64)))},
            "warning: train.run.image_sizes=((0, 32), (2, 64)): 64 px from an epoch on that train.run.epochs=2 does",
        ),
        (
            {
                "schedule": schedule(image_sizes=((0, 32), (1, 64))),
                "model": ModelSpec(freeze_until="conv5"),
                "augment": Augment(enabled=False),
            },
            "warning: train.run.image_sizes=((0, 32), (1, 64)) has no effect: frozen layers see each photo once",
        ),
        ({"loss": Loss(gamma=1.5)}, "warning: loss.gamma=1.5 has no effect. Set loss.name = 'focal', or leave it out."),
        ({"loss": Loss("focal", tau=0.5)}, "warning: loss.tau=0.5 has no effect. Set loss.name = 'logit_adjusted'"),
        ({"augment": Augment(enabled=False, cutmix_alpha=1)}, "warning: augment.cutmix_alpha=1 has no effect. Set"),
        ({"optimizer": OptimizerSpec(head_learning_rate=1)}, "warning: optimizer.head_learning_rate=1 has no effect."),
        (
            {"preprocess": Preprocess(image_size_px=224)},
            "warning: preprocess.image_size_px=224: the stored photos have a short side of 96 px, so they are enlarged",
        ),
        ({"weights": Weights(__file__)}, "test_preflight.py': not a weights file. Give .weights.h5, .h5 or .keras."),
        ({"weights": Weights("none.h5")}, "error: weights.path='none.h5': no such file. Give a weights file"),
        (
            {"weights": Weights(str(pathlib.Path(__file__).parent))},
            "neither a run with a checkpoint nor an export. Name one, or a file.",
        ),
        (
            {"hardware": Hardware(replicas=4), "machine": TWO_GPUS},
            "error: hardware.replicas=4, but this machine has 2 GPUs. Ask for no more, or 0 for all.",
        ),
        ({"hardware": Hardware(replicas=2)}, "warning: hardware.replicas=2 without a GPU: logical CPU devices"),
        ({"hardware": Hardware(precision="mixed_float16")}, "warning: hardware.precision='mixed_float16' without"),
        ({"hardware": Hardware(xla=True)}, "warning: hardware.xla=True without a GPU: about 4 times slower"),
        (
            {"hardware": Hardware(xla=True), "machine": TWO_GPUS},
            "error: hardware.xla=True with 2 replicas: XLA cannot synchronise BatchNorm across them. Set",
        ),
        (
            {"stream": Stream(shuffle_mib=64)},
            "warning: stream.shuffle_mib=64 is more than the train split's 0 MiB. Use 0",
        ),
        (
            {"machine": Machine(cores=2, free_bytes=2 * 10**8)},
            "error: the host: training with train.run.batch_size=8 takes about 0.4 GB, 0.2 GB are free. Try smaller",
        ),
        (
            {"schedule": schedule(batch_size=16), "machine": Machine(2, 8 * 10**9, gpu_bytes=(5 * 10**8,))},
            "warning: GPU 0: training with train.run.batch_size=16 takes about 0.5 GB, 0.5 GB are free. Try "
            "train.run.batch_size = 8, smaller",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(case, groups, expected):
    assert expected in only(changed(case, **groups))


def test_growing_images_need_not_be_square(case):
    oblong = changed(case, schedule=schedule(image_sizes=((0, (32, 64)), (1, 64))))
    assert oblong.image_sizes == [(64, 64), (32, 64), (64, 64)]
    assert messages(oblong) == []


def test_a_head_that_is_solved_takes_one_step_whatever_its_epochs(case):
    few = schedule(head_epochs=0.1)
    assert "train.run.head_epochs=0.1: less than one step of 8" in only(changed(case, schedule=few))
    assert messages(changed(case, schedule=dataclasses.replace(few, head_solver="lbfgs"))) == []


def test_photos_smaller_than_the_build_allowed_are_told(case):
    statistics = {**case.dataset.statistics, "height": {"mean": 48.2}, "width": {"mean": 64.0}}
    small = dataclasses.replace(case, dataset=dataclasses.replace(case.dataset, statistics=statistics))
    assert small.stored_short_px == 48.2  # not the 96 that --resize_short allowed
    assert only(small).startswith(
        "warning: preprocess.image_size_px=64: the stored photos on average have a short side of 48 px, so they are"
    )
    assert only(small).endswith("Use 32, or build with larger photos.")


def test_workers_count_as_replicas(case):
    workers = Workers(("a:1", "a:2", "b:3"), 0)
    among = dataclasses.replace(case, workers=workers)
    assert "train.run.batch_size=8 does not divide among 3 replicas. Use a multiple of 3" in only(among)
    even = changed(among, schedule=schedule(batch_size=9))
    assert messages(even) == []
    alone = changed(case, schedule=schedule(batch_size=3))  # as each of them
    assert cases.batches_bytes(even) == 2 * cases.batches_bytes(alone)
    assert cases.free_bytes_each(even) == CPU.free_bytes / 2
    in_windows = changed(even, stream=Stream(shuffle_mib=5000))
    assert "stream.shuffle_mib=5000 of each of 2 workers: 7629 MiB of memory are free" in messages(in_windows)[0]
    assert "hardware.replicas=2 with 3 workers" in messages(changed(even, hardware=Hardware(replicas=2)))[1]


def test_imagenet_weights_of_the_other_variant(case, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    wrong = changed(case, weights=Weights("imagenet"), model=ModelSpec(variant="v1.5"))
    error, warning = messages(wrong)
    assert error == "error: weights.path='imagenet' is of variant 'v1', model.variant is 'v1.5'. Set it to 'v1'."
    assert "Keras will download it" in warning


def test_weights_of_a_run_of_the_other_variant(case, tiny_run):
    assert messages(changed(case, weights=Weights(str(tiny_run)))) == []
    wrong = changed(case, weights=Weights(str(tiny_run)), model=ModelSpec(variant="v1.5"))
    assert "is of variant 'v1'. Set model.variant = 'v1'." in only(wrong)


def test_weights_of_a_run_without_a_checkpoint(case, tmp_path):
    (tmp_path / checkpoint.FOLDER).mkdir()
    assert f"error: weights.path='{tmp_path}': " in only(changed(case, weights=Weights(str(tmp_path))))


def test_windows_larger_than_the_memory(case):
    wrong = changed(case, stream=Stream(shuffle_mib=10_000))
    assert (
        "error: stream.shuffle_mib=10000: 7629 MiB of memory are free. Use 0 on a local disk, 1024"
        in messages(wrong)[0]
    )


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 6, 6, 6, 6, 12), "error: {data}: brand arvena without a training photo: never learned."),
        ((1, 7, 7, 7, 7, 7), "warning: {data}: brand arvena with 1 training photo only. Build with more photos."),
        ((2, 2, 2, 2, 2, 26), "warning: stream.sampling='natural': {last} has 26 training photos, {fifth} 2, so"),
    ],
)
def test_uneven_brands_are_told(case, counts, expected):
    names = {"data": case.data, "fifth": case.dataset.brands[4], "last": case.dataset.brands[5]}
    assert expected.format(**names) in only(with_train(case, brand_counts=counts))


def test_balanced_sampling_is_an_answer_to_imbalance(case):
    assert messages(changed(with_train(case, brand_counts=(2, 2, 2, 2, 2, 26)), stream=Stream(sampling="sqrt"))) == []


def test_empty_splits_are_told(case):
    empty = manifest.Split((), (0,) * 6)
    dataset = dataclasses.replace(case.dataset, splits={**case.dataset.splits, "validation": empty, "test": empty})
    assert [message.partition(": ")[0::2] for message in messages(dataclasses.replace(case, dataset=dataset))] == [
        ("error", f"{case.data}: the validation split is empty. Build with more photos, or another --split."),
        ("warning", f"{case.data}: the test split is empty. Build with more photos, or another --split."),
    ]


def test_empty_train_split_is_told(case):
    found = messages(with_train(case, shards=(), brand_counts=(0,) * 6))
    assert f"error: {case.data}: the train split is empty. Build with more photos, or another --split." in found


def test_every_damaged_shard_is_told_once(case, tmp_path):
    folder = tmp_path / "records"
    shutil.copytree(case.data, folder)
    names = [shard.name for shard in case.dataset.splits["train"].shards]
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-50])
    found = messages(dataclasses.replace(case, data=folder))
    assert len(found) == 2
    assert f"error: {folder / names[0]}: " in found[0]
    assert f"error: {folder / names[1]}: has " in found[1]


def test_full_disk_is_told(case, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    message = only(dataclasses.replace(case, run_dir=tmp_path / "runs" / "new"))
    # Weights and momentum of 23.6 million parameters, three times.
    assert message.startswith(f"error: {tmp_path}: checkpoints and stored features take about 0.6 GB, 0.0 GB are free.")


def test_disk_holds_what_is_kept_and_one_more(case, monkeypatch):
    keeping = checkpoint.Keeping(last=3, best=1)
    state = memory.state_bytes(ModelSpec(), OptimizerSpec(), 6)
    kept = dataclasses.replace(case, keeping=keeping)
    assert cases.disk_bytes(kept) == 5 * state
    assert cases.disk_bytes(changed(kept, schedule=schedule(epochs=1))) == 4 * state  # 3 steps
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3 * state}))
    assert only(kept).startswith("warning: ")


def test_averages_take_as_much_as_the_weights():
    sizes = [memory.state_bytes(ModelSpec(), OptimizerSpec(ema_decay=decay), 6) for decay in (0, 0.9)]
    adamw = memory.state_bytes(ModelSpec(), OptimizerSpec(name="adamw"), 6)
    assert sizes[1] == adamw > sizes[0]


def test_what_depends_on_a_wrong_group_is_not_looked_at(case):
    wrong = changed(case, hardware=Hardware(xla=True), optimizer=OptimizerSpec(warmup_epochs=3))
    assert [finding.where for finding in preflight.check(wrong, {"hardware"})] == ["optimizer.warmup_epochs"]


def test_facts_of_a_training(case):
    facts = cases.facts(changed(case, schedule=schedule(head_epochs=1), machine=TWO_GPUS))
    assert facts["photos"] == {"train": 22, "validation": 12, "test": 14}
    assert facts["steps"] == {"head": 3, "main": 6}  # 2.75 an epoch
    assert (facts["replicas"], facts["batch_per_replica"], facts["device"]) == (2, 4, "GPU")


# Draft.


@pytest.fixture
def _forget_bindings():
    yield
    config.parse()


@pytest.mark.usefixtures("_forget_bindings")
def test_every_wrong_value_is_told_with_the_others():
    config.parse(
        ["finetune"],
        [
            "augment.flip=3",
            "augment.color_jitter=3",
            "optimizer.name='adam'",
            "train.run.batch_size=0",
            "train.run.epochs='x'",
            "stream.threads=2",
        ],
    )
    drafted = draft.from_gin(train.run)
    assert [error.partition("=")[0] for error in drafted.errors] == [
        "augment.flip",
        "augment.color_jitter",
        "optimizer.name",
        "train.run.epochs",
        "train.run.batch_size",
    ]
    assert drafted.unsound == {"augment", "optimizer", "schedule"}
    assert drafted.settings.stream.threads == 2
    assert drafted.settings.schedule.batch_size == 32


@pytest.mark.usefixtures("_forget_bindings")
def test_wrong_values_of_what_is_kept_and_profiled_are_told():
    config.parse(
        bindings=["train.run.keep_last=0", "train.run.keep_best=-1", "train.run.profile_steps=3", "stream.threads=2"]
    )
    drafted = draft.from_gin(train.run)
    assert [error.partition("=")[0] for error in drafted.errors] == [
        "train.run.keep_last",
        "train.run.keep_best",
        "train.run.profile_steps",
    ]


@pytest.mark.usefixtures("_forget_bindings")
def test_frozen_stages_without_weights_are_told():
    config.parse(["probe"])
    drafted = draft.from_gin(train.run)
    assert [error.partition(":")[0] for error in drafted.errors] == ["weights.path=None"]
    assert drafted.unsound == set()


@pytest.mark.usefixtures("_forget_bindings")
def test_draft_has_the_settings_that_train_would_run_with():
    config.parse(["scratch"])
    drafted = draft.from_gin(train.run)
    assert drafted.errors == ()
    assert drafted.settings.schedule == Schedule(90, 0.0, 256, 0, True)
    assert drafted.settings.model == ModelSpec()


# Memory.


def test_parameters_are_those_of_keras_applications():
    layers = list(memory.convolutions(ModelSpec(), (224, 224)))
    assert len(layers) == 53
    assert sum(layer.parameters + layer.statistics for layer in layers) == 23_587_712
    assert memory.head_parameters(ModelSpec(hidden_units=(256,)), 20) == 2049 * 256 + 257 * 20


@pytest.mark.parametrize(("variant", "size"), [("v1", (97, 161)), ("v1.5", (64, 96))])
def test_outputs_are_those_of_the_model(variant, size):
    from carbrand.training.model import build_model

    model = build_model("ab", ModelSpec(variant=variant), image_size_px=size)
    shapes = [layer.output.shape[1:] for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    ours = [layer.outputs for layer in memory.convolutions(ModelSpec(variant=variant), size)]
    assert sorted(ours) == sorted(rows * columns * filters for rows, columns, filters in shapes)


# The rise of the peak resident memory of a process over three training steps on a CPU, in MiB.
@pytest.mark.parametrize(
    ("freeze_until", "size", "batch", "precision", "measured_mib"),
    [
        ("none", 224, 8, "float32", 1100),
        ("none", 224, 16, "float32", 2138),
        ("none", 128, 16, "float32", 813),
        ("none", 64, 32, "float32", 574),
        ("none", 224, 16, "mixed_bfloat16", 1529),
        ("conv3", 224, 16, "float32", 624),
        ("conv4", 224, 16, "float32", 303),
        ("conv5", 224, 16, "float32", 225),
    ],
)
def test_estimate_is_near_what_was_measured(freeze_until, size, batch, precision, measured_mib):
    spec, optimizer = ModelSpec(), OptimizerSpec()
    whole = memory.replica_bytes(
        spec,
        optimizer,
        num_brands=20,
        height_width=(size, size),
        batch=batch,
        precision=precision,
        freeze_until=freeze_until,
    )
    rise = whole - memory.state_bytes(spec, optimizer, 20)  # which was there before the steps
    assert rise / 2**20 == pytest.approx(measured_mib, rel=0.25)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_has_the_slots_of_the_optimizer(name):
    spec = OptimizerSpec(name=name)
    weight = keras.Variable(np.zeros(1000, np.float32))
    slots = sum(np.size(variable) == 1000 for variable in build_optimizer(spec, [weight]).variables)
    without = 4 * 23_587_712 + 4 * 2049 * 20
    trainable = without - 4 * 53_120  # but BatchNorm's statistics
    assert memory.state_bytes(ModelSpec(), spec, 20) == without + slots * trainable


def test_features_of_one_photo():
    assert memory.feature_bytes(ModelSpec(), (224, 224), "conv5") == 2048 * 4
    assert memory.feature_bytes(ModelSpec(), (224, 224), "conv4") == 14 * 14 * 1024 * 4
    assert memory.feature_bytes(ModelSpec(), (224, 224), "conv1") == 56 * 56 * 64 * 4


# Machine.


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 3000 * 1024), ("2000000", 2_000_000 - 900_000 + 100_000), ("100", 0)],
)
def test_free_memory_obeys_the_container_s_limit(tmp_path, limit, expected):
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    3000 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert machine._free_bytes(tmp_path / "meminfo", tmp_path) == expected


def test_free_memory_is_unknown_elsewhere(tmp_path):
    assert machine._free_bytes(tmp_path / "none", tmp_path) is None


def test_a_run_that_cannot_go_on_with_these_settings_is_found(case, tiny_run):
    case = changed(
        case,
        model=ModelSpec(freeze_until="conv5"),
        schedule=schedule(epochs=1.5),
        preprocess=Preprocess(image_size_px=32),
    )
    case = dataclasses.replace(case, run_dir=tiny_run)
    assert messages(case) == []
    assert messages(changed(case, hardware=Hardware(replicas=1, wait_for_workers_s=5))) == []  # it has one replica
    two = Machine(cores=2, free_bytes=8 * 10**9, gpu_bytes=(8 * 10**9,) * 2)
    assert "the run was started with replicas=1, now it is 2" in only(changed(case, machine=two))
    message = only(changed(case, schedule=schedule(epochs=1.5, seed=1)))
    assert message.startswith("error: ")
    assert "the run was started with train.run.seed=0, now it is 1" in message
