import dataclasses
import json
import pathlib

import pytest
import tiny_network

from carbrand import cli, config
from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError
from carbrand.training import advice, doctor, measure, trainer
from carbrand.training.advice import Measured
from carbrand.training.hardware import Hardware
from carbrand.training.machine import Machine
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OptimizerSpec
from carbrand.training.settings import Schedule, Settings
from carbrand.training.weights import Weights

TINY = ["preprocess.image_size_px = 32", "train.run.batch_size = 8", "weights.path = 'random'"]


@pytest.fixture(autouse=True)
def _forget_bindings():
    yield
    config.parse()


def settings(**changes):
    return Settings(
        **{
            "model": ModelSpec(),
            "weights": Weights("random"),
            "preprocess": Preprocess(),
            "augment": Augment(),
            "stream": Stream(),
            "optimizer": OptimizerSpec(),
            "hardware": Hardware(),
            "schedule": Schedule(10, 0, 32, 0, True),
            **changes,
        }
    )


# A machine of 8 cores; the input costs 4 ms of CPU time per image, half of it decoding.
BASE = Measured(
    settings=settings(),
    input=2000,
    compute=2000,
    read=0.5e-3,
    decode=2e-3,
    augment=1.5e-3,
    threads=8,
    cores=8,
    gpus=1,
    has_bfloat16=False,
    stored_short_px=256,
)


@pytest.mark.parametrize(
    ("changes", "limit", "line"),
    [
        ({"compute": 2200}, "neither", ""),
        # The input is the limit.
        ({"compute": 3000, "threads": 2}, "input", "stream.threads = 3"),
        ({"compute": 9000, "threads": 6}, "input", "stream.threads = 8"),
        # 4 ms have to become 3 ms; a layer costs 0.75 ms of 1.5, but all of the decoding cannot be spared.
        (
            {"compute": 8000 / 3, "decode": 1.2e-3, "read": 0.3e-3, "augment": 2.5e-3,
             "settings": settings(augment=Augment(randaugment_layers=5))},
            "input", "augment.randaugment_layers = 3",
        ),
        (
            {"compute": 20000, "augment": 9e-3, "settings": settings(augment=Augment(randaugment_layers=2))},
            "input", "augment.randaugment_layers = 0",
        ),
        (
            {"compute": 4000, "augment": 3e-3, "settings": settings(augment=Augment(color_jitter=0.4))},
            "input", "augment.color_jitter = 0.0",
        ),
        (
            {"compute": 4000, "augment": 3e-3, "settings": settings(augment=Augment(erase_probability=0.4))},
            "input", "augment.erase_probability = 0.0",
        ),
        ({"compute": 4000, "stored_short_px": 1000}, "input", "carbrand build --resize_short 256 …"),
        ({"compute": 4000, "read": 5e-3}, "input", "stream.shuffle_mib = 256"),
        ({"compute": 4000, "read": 5e-3, "settings": settings(stream=Stream(sampling="sqrt"))}, "input", ""),
        ({"compute": 4000}, "input", ""),
        # The GPU is the limit.
        ({"compute": 1000}, "step", "hardware.xla = True"),
        ({"compute": 1000, "gpus": 2}, "step", "hardware.precision = 'mixed_bfloat16'"),
        ({"compute": 1000, "gpus": 2, "settings": settings(model=ModelSpec(synchronized_batch_norm=False))},
         "step", "hardware.xla = True"),
        ({"compute": 1000, "settings": settings(hardware=Hardware(xla=True))},
         "step", "hardware.precision = 'mixed_bfloat16'"),
        ({"compute": 1000, "settings": settings(hardware=Hardware(xla=True, precision="mixed_bfloat16"))},
         "step", "train.run.deterministic = False"),
        ({"compute": 1000, "settings": settings(hardware=Hardware(xla=True, precision="mixed_bfloat16"),
                                                schedule=Schedule(10, 0, 32, 0, False))}, "step", ""),
        # The CPU is the limit.
        ({"compute": 20, "gpus": 0, "has_bfloat16": True}, "step", "hardware.precision = 'mixed_bfloat16'"),
        ({"compute": 20, "gpus": 0, "settings": settings(hardware=Hardware(xla=True))}, "step", "hardware.xla = False"),
        ({"compute": 20, "gpus": 0, "settings": settings(hardware=Hardware(precision="mixed_float16"))},
         "step", "hardware.precision = 'float32'"),
        ({"compute": 20, "gpus": 0}, "step", "model.freeze_until = 'conv4'"),
        ({"compute": 20, "gpus": 0, "settings": settings(model=ModelSpec(freeze_until="conv5"))},
         "step", "augment.enabled = False"),
        ({"compute": 20, "gpus": 0, "is_cached": True}, "step", ""),
        ({"compute": 20, "gpus": 0, "settings": settings(weights=Weights())},
         "step", "train.run.image_sizes = ((0, 128), (6.0, 224))"),
        ({"compute": 20, "gpus": 0, "settings": settings(weights=Weights(), preprocess=Preprocess(64))}, "step", ""),
        ({"compute": 20, "gpus": 0, "settings": settings(weights=Weights(), preprocess=Preprocess((128, 256)))},
         "step", ""),
        ({"compute": 20, "gpus": 0, "settings": settings(weights=Weights(), schedule=Schedule(0.1, 0, 32, 0, True))},
         "step", ""),
        ({"compute": 20, "gpus": 0,
          "settings": settings(schedule=Schedule(10, 0, 32, 0, True, unfreeze=(("conv4", 4),)))},
         "step", "train.run.image_sizes = ((0, 128), (6.0, 224))"),
    ],
)  # fmt: skip
def test_advice_follows_from_the_numbers(changes, limit, line):
    found = advice.advise(dataclasses.replace(BASE, **changes))
    assert (found.limit, found.line) == (limit, line)
    assert found.ratio >= 1
    assert found.reason


def test_a_gin_line_of_the_advice_can_be_bound():
    sizes = advice.advise(dataclasses.replace(BASE, compute=20, gpus=0, settings=settings(weights=Weights())))
    config.parse(bindings=[sizes.line, "hardware.precision = 'mixed_bfloat16'"])


def test_check_builds_no_model(drawn_records, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "build_model", lambda *_, **__: pytest.fail("built a model"))
    config.parse(["finetune"], TINY)
    found = doctor.run(drawn_records, check_only=True, output=tmp_path)
    assert found.findings == []
    output = capsys.readouterr().out
    assert "6 brands; photos: 22 train, 12 validation, 14 test" in output
    assert "plan: head 110 steps, then main 39 steps; 2.8 steps an epoch; 8 photos a step on CPU" in output
    assert json.loads((tmp_path / doctor.REPORT).read_text())["advice"] is None


def test_a_run_that_is_a_file_raises(drawn_records):
    with pytest.raises(ConfigError, match="--run=.*: is a file. Name a folder"):
        doctor.run(drawn_records, check_only=True, run_dir=__file__)


def test_errors_are_told_together_and_nothing_is_measured(drawn_records, monkeypatch, capsys):
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("measured"))
    config.parse(["probe"], ["augment.crop_area_min = 0", "stream.sampling = 'x'", "train.run.keep_last = 0"])
    with pytest.raises(ConfigError, match="records: 4 errors to mend before training, listed above"):
        doctor.run(drawn_records)
    output = capsys.readouterr().out
    for name in ("augment.crop_area_min=0:", "stream.sampling='x'", "train.run.keep_last=0", "weights.path=None"):
        assert f"error: {name}" in output


PARTS = {
    "images": (["augment.color_jitter = 0.2", "model.freeze_until = 'conv4'"],
               ["read", "decode", "augment", "bound", "input", "step", "end to end"]),
    "mixed photos without colour": (["augment.mixup_alpha = 0.2", "model.freeze_until = 'conv5'"],
                                    ["read", "decode", "augment", "bound", "input", "step", "end to end"]),
    "stored features": (["augment.enabled = False", "model.freeze_until = 'conv5'", "stream.shuffle_mib = 1"],
                        ["read", "decode", "bound", "input", "frozen", "step", "end to end"]),
    "sizes by epoch": (["train.run.image_sizes = ((0, 32), (5, 64))", "model.freeze_until = 'conv5'",
                        "hardware.replicas = 2"],
                       ["read", "decode", "augment", "bound", "input", "step", "end to end"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_measures_each_part_and_names_a_limit(drawn_records, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr(trainer, "build_model", tiny_network.build_model)
    bindings, parts = PARTS[kind]
    config.parse(bindings=[*TINY, *bindings])
    found = doctor.run(drawn_records, seconds=0.2, output=tmp_path)
    assert list(found.rates) == parts
    assert all(rate.images_per_s > 0 and rate.images_per_cpu_s > 0 for rate in found.rates.values())
    assert found.advice.limit in ("input", "step", "neither")
    output = capsys.readouterr().out
    assert "limit: " in output
    assert "transfer            -          -  none" in output
    assert [path.name for path in tmp_path.iterdir()] == [doctor.REPORT]
    report = json.loads((tmp_path / doctor.REPORT).read_text())
    assert report["rates"]["step"]["images_per_s"] == found.rates["step"].images_per_s


def test_transfer_is_measured_where_there_are_gpus(drawn_records, monkeypatch, capsys):
    fake = Machine(cores=2, free_bytes=8 * 10**9, gpu_bytes=(8 * 10**9,))  # the copy itself is one on the CPU
    monkeypatch.setattr(doctor.machine, "look", lambda: fake)
    config.parse(bindings=[*TINY, "model.freeze_until = 'conv5'"])
    assert doctor.run(drawn_records, seconds=0.1).rates["transfer"].images_per_s > 0
    output = capsys.readouterr().out
    assert "of each GPU's memory (8.0 GB)" in output
    assert "from host to GPU" in output


def test_rate_counts_images_per_second(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(measure.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(measure.time, "process_time", lambda: 2 * next(clock))
    measured = measure.rate(lambda: 30, seconds=4)
    # Each look at a clock takes a second; in a window: start, CPU start, after the work, end, CPU end.
    assert measured.images_per_s == 30 / 3
    assert measured.images_per_cpu_s == 30 / 6


def carbrand(*arguments):
    try:
        return cli._run(cli._parse(["carbrand", "doctor", *map(str, arguments)]))
    except SystemExit as stop:
        return stop.code


def test_help_has_an_example(capsys):
    assert carbrand("--help") == 0
    assert "example:\n  carbrand doctor --data records" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "DataError: nowhere: no such folder."),
        (["--gin_param", "train.run.epoch=1"], "Did you mean train.run.epochs?"),
        (["--gin_file", "nothere"], "nothere: no such gin file"),
        (["--seconds", "0"], "ConfigError: --seconds=0.0: give a number above 0."),
        (["--gin_param", "train.run.batch_size=0"], "1 error to mend before training, listed above."),
    ],
)
def test_bad_input_is_one_line(drawn_records, capsys, arguments, message):
    where = [] if "--data" in arguments else ["--data", drawn_records]
    assert carbrand(*where, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_check_on_the_command_line(drawn_records, capsys):
    options = [option for binding in TINY for option in ("--gin_param", binding)]
    assert carbrand("--data", pathlib.Path(drawn_records), *options, "--check") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "needs about 0." in output.out
