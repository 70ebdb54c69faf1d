"""The whole flow on photos drawn by the program: draw, build, train, evaluate, export, predict."""

import os
import pathlib
import subprocess
import sys

from carbrand.demo import draw

DRAWN = "photos"
RECIPE = "demo"


def run(folder: str | os.PathLike[str], *, photos_per_brand: int = 160, epochs: float | None = None) -> None:
    """Runs the flow in `folder`, each stage as the command that a user would type; finished stages are not repeated.

    Args:
      folder: Gets photos/, records/, run/ and model/.
      photos_per_brand: How many to draw.
      epochs: Passes over the training photos; None: as the recipe says.

    Raises:
      SystemExit: A stage failed, with its exit code.
    """
    folder = pathlib.Path(folder)
    photos, records, run_dir, model = (folder / name for name in (DRAWN, "records", "run", "model"))
    if not (photos / ".complete").exists():
        print(f"Drawing photos of six invented brands: {photos}", flush=True)
        draw.draw_photos(photos, photos_per_brand=photos_per_brand)
        (photos / ".complete").touch()
    if not (records / "manifest.json").exists():
        _stage("build", "--input", photos, "--output", records)
    if not (run_dir / "run.json").exists():
        bindings = [] if epochs is None else ["--gin_param", f"train.run.epochs={epochs}"]
        _stage("train", "--data", records, "--run", run_dir, "--gin_file", RECIPE, *bindings)
    _stage("evaluate", "--run", run_dir, "--data", records)
    if not (model / "model.json").exists():
        _stage("export", "--run", run_dir, "--data", records, "--output", model)
    one_of_each = [sorted(brand.glob("0*.jpg"))[-1] for brand in sorted(photos.iterdir()) if brand.is_dir()]
    _stage("predict", "--model", model, *one_of_each)
    print(f"\nReport: {run_dir / 'evaluation-test' / 'report.txt'}\nModel:  {model}")


def _stage(*arguments: str | pathlib.Path) -> None:
    print(f"\n$ carbrand {' '.join(map(str, arguments))}", flush=True)
    code = subprocess.run([sys.executable, "-m", "carbrand", *map(str, arguments)], check=False).returncode
    if code:
        raise SystemExit(code)
