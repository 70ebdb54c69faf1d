"""The whole flow on photos drawn by the program: draw, build, train, evaluate, export, predict."""

import csv
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from carbrand import exported, files
from carbrand.demo import draw
from carbrand.errors import ConfigError

RECIPE = "demo"
_SETTINGS = "demo.json"  # written when the photos are drawn


def run(folder: str | os.PathLike[str], *, photos_per_brand: int = 160, epochs: float | None = None) -> None:
    """Runs the flow in `folder`, each stage as the command that a user would type; finished stages are not repeated.

    Args:
      folder: Gets photos/, records/, run/ and model/.
      photos_per_brand: How many to draw.
      epochs: Passes over the training photos; None: as the recipe says.

    Raises:
      ConfigError: `folder` holds a demo with other arguments.
      SystemExit: A stage failed, with its exit code.
    """
    folder = pathlib.Path(folder)
    photos, records, run_dir, model = (folder / name for name in ("photos", "records", "run", "model"))
    _draw(folder, photos, {"photos_per_brand": photos_per_brand, "epochs": epochs})
    if not (records / "manifest.json").exists():
        _stage("build", "--input", photos, "--output", records)
    if not (run_dir / "run.json").exists():
        bindings = [] if epochs is None else ["--gin_param", f"train.run.epochs={epochs}"]
        _stage("train", "--data", records, "--run", run_dir, "--gin_file", RECIPE, *bindings)
    report = run_dir / "evaluation-test"
    is_new = not (report / "report.json").exists()
    if is_new:
        _stage("evaluate", "--run", run_dir, "--data", records)
    if is_new or not exported.is_export(model):
        _stage("export", "--run", run_dir, "--data", records, "--output", model)
    _stage("predict", "--model", model, *_one_photo_per_brand(report / "predictions.csv", photos))
    accuracy = json.loads((report / "report.json").read_text())["metrics"]["accuracy"]
    print(f"\nReport: {report} (test accuracy {accuracy:.1%})\nModel:  {model}")


def _draw(folder: pathlib.Path, photos: pathlib.Path, settings: dict[str, Any]) -> None:
    path = folder / _SETTINGS
    if not path.exists():
        print(f"Drawing photos of six invented brands: {photos}", flush=True)
        draw.draw_photos(photos, photos_per_brand=settings["photos_per_brand"])
        files.write_json(path, settings)
    elif json.loads(path.read_text()) != settings:
        raise ConfigError(f"--dir={folder}: holds a demo made with {json.loads(path.read_text())}. Give another --dir.")


def _one_photo_per_brand(predictions: pathlib.Path, photos: pathlib.Path) -> list[pathlib.Path]:
    """The first test photo of each brand: none that the network has trained on."""
    with predictions.open(encoding="utf-8-sig", newline="") as file:
        names = {row["brand"]: row["filename"] for row in reversed(list(csv.DictReader(file)))}
    return [photos / names[brand] for brand in sorted(names)]


def _stage(*arguments: str | pathlib.Path) -> None:
    print(f"\n$ carbrand {' '.join(map(str, arguments))}", flush=True)
    code = subprocess.run([sys.executable, "-m", "carbrand", *map(str, arguments)], check=False).returncode
    if code:
        raise SystemExit(code)
