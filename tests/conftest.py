"""Data that tests of several stages need."""

import contextlib
import os
import pathlib
import shutil

import gin
import pytest


@pytest.fixture(autouse=True)
def no_bindings_of_other_tests():
    """Commands bind gin's parameters for their process, which is all tests' here."""
    yield
    gin.clear_config(clear_constants=True)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes a folder in the first of pytest's processes that wants it, and a copy for each: tests may write there."""
    from carbrand import files

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def folder(name, make):
        made, done = shared / "made_once" / name, shared / "made_once" / f"{name}.done"
        made.parent.mkdir(exist_ok=True)
        with files.one_at_a_time(made.with_suffix(".lock")):
            if not done.exists():
                make(made)
                done.touch()
        return shutil.copytree(made, tmp_path_factory.mktemp(name) / name)

    return folder


@pytest.fixture(scope="session")
def drawn_photos(made_once):
    """Eight photos of each of six drawn brands, three broken files and three copies."""
    from carbrand.demo import draw

    return made_once("photos", lambda folder: draw.draw_photos(folder, photos_per_brand=8))


@pytest.fixture(scope="session")
def drawn_records(drawn_photos, made_once):
    """The records of `drawn_photos`, in two training shards."""
    from beam_jobs import build_dataset, build_output

    choices = build_output.Choices(resize_short_px=96)
    return made_once("records", lambda folder: build_dataset.run(drawn_photos, folder, choices, num_shards=2))


@pytest.fixture(scope="session")
def tiny_run(drawn_records, made_once):
    """A ResNet-50 on 32-pixel images after a few steps of its head: every stage after it has something to work on."""
    from carbrand.data.preprocess import Preprocess
    from carbrand.training import train
    from carbrand.training.model import ModelSpec
    from carbrand.training.weights import Weights

    options = {"model": ModelSpec(freeze_until="conv5"), "weights": Weights("random")}  # quick to trace
    options |= {"epochs": 1.5, "batch_size": 8, "preprocess": Preprocess(image_size_px=32)}
    return made_once("run", lambda folder: train.run(drawn_records, folder, **options))


@pytest.fixture(scope="session")
def tiny_model(tiny_run, drawn_records, made_once):
    """The export of `tiny_run`, its first version."""
    from carbrand.serving import export

    return made_once("model", lambda folder: export.run(tiny_run, folder, data=drawn_records)) / "1"


@pytest.fixture(scope="session")
def real_data():
    """Folders of real photos, which lie beside some checkouts and are never part of one."""
    folder = pathlib.Path(__file__).parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("the real photos are not beside this checkout")
    return folder.resolve()


@pytest.fixture(scope="module")  # not longer: while it is open, no other event loop can run in this thread
def browser():
    """Headless Chromium, of this machine."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    chromium = next(found, None)
    if chromium is None:
        pytest.skip("no Chromium here; .ci/run installs one")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright, contextlib.ExitStack() as stack:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        stack.callback(started.close)
        yield started
