"""`killable_runs.py RECORDS` reads lines {"run": FOLDER, …} and answers each with the exit code of a training there.

TensorFlow is imported once; each training is a fork, which a line may have killed:
  "after_s": SIGKILL after so many seconds;
  "at": [PLACE, N]: by itself, the N-th time that it comes to one of `PLACES`; "signal": by this one instead of SIGKILL.
"""

import json
import os
import signal
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tiny_network

from carbrand.data.preprocess import Preprocess
from carbrand.training import checkpoint, features, step, train, trainer, validation
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OptimizerSpec
from carbrand.training.weights import Weights

OPTIONS = {
    "epochs": 3,
    "head_epochs": 2,
    "unfreeze": (("conv4", 1.5),),
    "batch_size": 4,
    "checkpoint_every_s": 0.1,
    "keep_best": 1,
    "preprocess": Preprocess(image_size_px=32),
    "model": ModelSpec(freeze_until="conv3", dropout=0.3),
    "weights": Weights("random"),
    "optimizer": OptimizerSpec(ema_decay=0.9, clip_norm=1.0, label_smoothing=0.1, stage_decay=0.5, warmup_epochs=0.5),
}


class AlwaysScaled(step.LossScale):
    """Loss scaling as for float16, and a scale that changes every few steps."""

    def __init__(self, precision):
        super().__init__("mixed_float16")


def call_before(owner, name, function):
    """Has `function` called before each call of `owner.name`."""
    original = getattr(owner, name)

    def both(*arguments, **options):
        function()
        return original(*arguments, **options)

    setattr(owner, name, both)


def call_after(owner, name, function):
    original = getattr(owner, name)

    def both(*arguments, **options):
        result = original(*arguments, **options)
        function()
        return result

    setattr(owner, name, both)


# In a step, in the writing of a checkpoint before and after its last byte, in evaluation, and between phases.
PLACES = {
    "step": lambda die: call_before(train.Progress, "add", die),
    "save": lambda die: call_before(checkpoint.np, "savez", die),
    "saved": lambda die: call_after(checkpoint.np, "savez", die),
    "validate": lambda die: call_before(features, "outputs", die),
    "validated": lambda die: call_after(validation.Validator, "validate", die),
    "phase": lambda die: call_before(train, "_train_phase", die),
    "features": lambda die: call_before(features.np.lib.format, "open_memmap", die),
}


def train_once(records, request):
    trainer.build_model = tiny_network.build_model
    trainer.LossScale = AlwaysScaled
    step._GROWTH_STEPS = 3
    if "at" in request:
        place, number = request["at"]
        calls = []

        def die():
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), request.get("signal", signal.SIGKILL))

        PLACES[place](die)
    train.run(records, request["run"], **OPTIONS)


def main():
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            code = 1
            try:
                train_once(sys.argv[1], request)
                code = 0
            except SystemExit as stop:
                code = stop.code
            finally:
                os._exit(code)
        start = time.monotonic()
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() - start > request.get("after_s", 1e9):
                os.kill(child, signal.SIGKILL)
                request.pop("after_s", None)
            time.sleep(0.01)
        print(os.waitstatus_to_exitcode(status), time.monotonic() - start, flush=True)


main()
