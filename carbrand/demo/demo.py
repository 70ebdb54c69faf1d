"""The whole flow on photos drawn by the program: draw, build, train, evaluate, export, predict."""

import csv
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from carbrand import checks, exported, files
from carbrand.demo import draw
from carbrand.errors import ConfigError

RECIPE = "demo"
_SETTINGS = "demo.json"


def run(folder: str | os.PathLike[str], *, photos_per_brand: int = 160, epochs: float | None = None) -> None:
    """Runs the flow in `folder`, each stage as the command that a user would type; finished stages are not repeated.

    Args:
      folder: Gets photos/, records/, run/ and model/.
      photos_per_brand: How many to draw.
      epochs: Passes over the training photos; None: as the recipe says.

    Raises:
      ConfigError: An argument cannot work, or `folder` holds a demo with other ones, or what no demo has made.
      SystemExit: A stage failed, with its exit code.
    """
    checks.number("--photos_per_brand", photos_per_brand, at_least=1, whole=True)
    if epochs is not None:
        checks.number("--epochs", epochs, above=0)
    checks.folder("--dir", folder)
    folder = pathlib.Path(folder)
    photos, records, run_dir, model = (folder / name for name in ("photos", "records", "run", "model"))
    _begin(folder, {"photos_per_brand": photos_per_brand, "epochs": epochs}, (photos, records, run_dir, model))
    if not photos.exists():
        print(f"Drawing photos of six invented brands: {photos}", flush=True)
        unfinished = photos.with_name(".photos")
        draw.draw_photos(unfinished, photos_per_brand=photos_per_brand)
        unfinished.rename(photos)
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


def _begin(folder: pathlib.Path, settings: dict[str, Any], outputs: Sequence[pathlib.Path]) -> None:
    """Notes what the demo is; refuses to go on with another one, and to take for its own what was there before."""
    path = folder / _SETTINGS
    if not path.exists():
        for output in outputs:
            if output.exists():
                raise ConfigError(f"--dir={folder}: holds {output.name}, which is no demo's. Give another --dir.")
        files.write_json(path, settings)
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({error}). Give another --dir.") from error
    if before != settings:
        raise ConfigError(f"--dir={folder}: holds a demo made with {before}. Give another --dir.")


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
