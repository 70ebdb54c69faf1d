"""`tiny_training.py RECORDS RUN [NAME=VALUE …]` trains the tiny network as `carbrand train` trains ResNet-50."""

import ast
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tiny_network

from carbrand.data.preprocess import Preprocess
from carbrand.errors import CarbrandError
from carbrand.training import train, trainer
from carbrand.training.hardware import Hardware
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OptimizerSpec


def main():
    records, run_dir, *options = sys.argv[1:]
    values = {name: ast.literal_eval(value) for name, _, value in (option.partition("=") for option in options)}
    trainer.build_model = tiny_network.build_model
    try:
        train.run(
            records,
            run_dir,
            batch_size=4,
            preprocess=Preprocess(image_size_px=32),
            model=ModelSpec(dropout=0.3),
            optimizer=OptimizerSpec(ema_decay=0.9, clip_norm=1.0, label_smoothing=0.1),
            hardware=Hardware(replicas=values.pop("replicas", 0), wait_for_workers_s=values.pop("wait_s", 60)),
            **values,
        )
    except CarbrandError as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(error.exit_code)


main()
