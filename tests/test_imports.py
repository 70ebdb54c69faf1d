"""The rooms of the house: which module may import which, and what stays out of light processes."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Each room may import from itself and from the rooms named; `carbrand` is the package's own __init__.
FOUNDATION = {
    "carbrand",
    "carbrand.errors",
    "carbrand.files",
    "carbrand.checks",
    "carbrand.quiet",
    "carbrand.templates",
}
ROOMS = {
    "carbrand.errors": set(),
    "carbrand.files": {"carbrand.errors"},
    "carbrand.checks": {"carbrand.errors"},
    "carbrand.quiet": set(),
    "carbrand.templates": set(),
    "carbrand.exported": FOUNDATION,
    "carbrand.config": FOUNDATION,
    "carbrand.data": FOUNDATION,
    "carbrand.training": FOUNDATION | {"carbrand.config", "carbrand.exported", "carbrand.data"},
    "carbrand.evaluation": FOUNDATION | {"carbrand.exported", "carbrand.data", "carbrand.training"},
    "carbrand.serving": FOUNDATION
    | {"carbrand.exported", "carbrand.data", "carbrand.training", "carbrand.evaluation", "carbrand.serving.predictor"},
    "carbrand.serving.predict": FOUNDATION | {"carbrand.exported", "carbrand.data", "carbrand.serving.predictor"},
    "carbrand.serving.predictor": FOUNDATION | {"carbrand.exported", "carbrand.data"},
    "carbrand.monitoring": FOUNDATION
    | {
        "carbrand.exported",
        "carbrand.data",
        "carbrand.evaluation",
        "carbrand.serving",
        "carbrand.serving.predictor",
    },
    "carbrand.demo": FOUNDATION | {"carbrand.exported"},
    "beam_jobs": FOUNDATION | {"carbrand.data"},
    "beam_jobs.predict_images": FOUNDATION
    | {"carbrand.data", "carbrand.exported", "carbrand.serving.predict", "carbrand.serving.predictor", "beam_jobs"},
}
# What these modules may load of the heavy libraries, their own imports included.
LIGHT = {
    "carbrand": set(),
    "carbrand.cli": set(),
    "carbrand.exported": set(),
    "carbrand.config": {"gin"},
    **{
        f"carbrand.data.{m}": set()
        for m in (
            "brands",
            "cache",
            "catalogue",
            "contact_sheet",
            "draws",
            "duplicates",
            "images",
            "manifest",
            "near_duplicates",
            "page",
            "randaugment",
            "records",
            "sources",
            "splits",
            "tfds_source",
            "verify",
        )
    },
    "carbrand.data.augment": {"gin"},
    "carbrand.training.tune": {"gin"},
    "carbrand.evaluation.metrics": set(),
    "carbrand.monitoring.monitor": set(),
    "carbrand.monitoring.review": set(),
    "carbrand.serving.predict": {"tensorflow"},
    "carbrand.serving.predictor": {"tensorflow"},
    "carbrand.serving.serve": {"tensorflow"},
    "beam_jobs.build_dataset": set(),  # before Beam is loaded, it checks few photos, and what was asked for
    "beam_jobs.build_pipeline": {"apache_beam"},
    "beam_jobs.verify_dataset": {"apache_beam"},
}
HEAVY = ("tensorflow", "apache_beam", "gin", "keras")


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_known(name):
    return (ROOT / name.replace(".", "/")).with_suffix(".py").exists() or (ROOT / name.replace(".", "/")).is_dir()


def imports_of(path):
    """Names of our own modules that the file at `path` imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_known(name) else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name.startswith(("carbrand", "beam_jobs")))


def room_of(module, rooms=ROOMS):
    fitting = [room for room in rooms if module == room or module.startswith(room + ".")]
    return max(fitting, key=len, default=module)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_downward(room):
    package = ROOT / room.replace(".", "/")
    paths = package.rglob("*.py") if package.is_dir() else [package.with_suffix(".py")]
    for path in paths:
        for name in imports_of(path):
            inside = room_of(module_name(path))
            home = room_of(name)
            assert home == inside or home in ROOMS[inside], f"{path}: {inside} must not import {name}"


@pytest.mark.parametrize("allowed", sorted({tuple(sorted(allowed)) for allowed in LIGHT.values()}))
def test_light_modules_load_no_heavy_library(allowed):
    modules = [module for module, its_own in LIGHT.items() if its_own == set(allowed)]
    # A child per module, so that each is the first of ours to be imported; what is not ours is loaded once, before.
    code = f"""
import importlib, os, sys
for module in {allowed} + ("numpy",):
    importlib.import_module(module)
for module in {modules}:
    child = os.fork()
    if not child:
        importlib.import_module(module)
        print(module, *[m for m in {HEAVY} if m in sys.modules], flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert len(lines) == len(modules)
    for line in lines:
        module, *loaded = line.split()
        assert set(loaded) <= set(allowed) | ({"keras"} if "tensorflow" in allowed else set()), module


def test_help_loads_no_heavy_library():
    code = f"""
import sys
from carbrand import cli
try:
    sys.argv = ["carbrand", "--help"]
    cli.main()
except SystemExit:
    print("loaded:", *[m for m in {HEAVY} if m in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "the whole flow" in output
    assert output.splitlines()[-1] == "loaded:"


def test_public_names_resolve():
    import carbrand

    for name in carbrand.__all__:
        assert getattr(carbrand, name) is not None
    with pytest.raises(AttributeError, match="module 'carbrand' has no attribute 'Predicator'"):
        carbrand.Predicator  # noqa: B018


def test_files_of_tests_have_names_of_their_own():
    # pytest imports them without their folders: of two with one name, the second is an error, once all are collected.
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
