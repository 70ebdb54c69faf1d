import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from carbrand import exported
from carbrand.data import manifest
from carbrand.errors import ConfigError, DataError, GateError
from carbrand.serving import export
from carbrand.training import checkpoint, weights
from carbrand.training.model import ModelSpec, build_model


def test_graph_takes_encoded_photos_and_returns_brands(tiny_model, drawn_photos, drawn_records):
    brands = manifest.load(drawn_records).brands
    signature = tf.saved_model.load(str(tiny_model / "1")).signatures["serving_default"]
    photos = [(drawn_photos / brand / "0001.jpg").read_bytes() for brand in brands[:2]]
    answer = signature(tf.constant(photos))
    probabilities = answer["probabilities"].numpy()
    assert probabilities.shape == (2, 6)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert [b.decode() for b in answer["brand"].numpy()] == [brands[i] for i in probabilities.argmax(-1)]
    np.testing.assert_array_equal(answer["probability"], probabilities.max(-1))


def test_each_variable_is_stored_once(tiny_model):
    names = [name for name, _ in tf.train.list_variables(str(tiny_model / "1" / "variables" / "variables"))]
    assert sum(name.startswith("weights/") for name in names) == 320
    size = sum(path.stat().st_size for path in (tiny_model / "1" / "variables").iterdir())
    assert size < 4.1 * 23_600_005  # float32, and a little


def test_manifest_holds_what_prediction_needs(tiny_model, drawn_records):
    description, dataset = exported.load(tiny_model), manifest.load(drawn_records)
    assert description.brands == dataset.brands
    assert description.resize_short_px == dataset.resize_short_px == 96
    assert description.facts["trained_on"] == dataset.fingerprint


def test_weights_of_an_export_load_into_a_model(tiny_model, tiny_run):
    model = build_model(("x", "y"), ModelSpec())
    assert weights.load(model, str(tiny_model), "v1").backbone_fraction == 1
    stored = checkpoint.load_run(tiny_run).model["conv5_block3_3_conv/kernel"]
    np.testing.assert_array_equal(model.get_layer("conv5_block3_3_conv").kernel.numpy(), stored)


def test_existing_folder_raises(tiny_run, tiny_model):
    with pytest.raises(ConfigError, match="exists and is not empty. Give another folder, or --overwrite"):
        export.run(tiny_run, tiny_model)


def test_overwriting_replaces_the_export(tiny_run, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / exported.MANIFEST).write_text("{}")
    export.run(tiny_run, tmp_path / "model", overwrite=True)
    assert exported.load(tmp_path / "model").variables == exported.load(tiny_model).variables


def test_a_graph_that_answers_otherwise_is_not_completed(tiny_run, drawn_records, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_PARITY_DIFFERENCE", -1.0)
    with pytest.raises(GateError, match="probabilities differ from the run's by .* The export was not completed"):
        export.run(tiny_run, tmp_path / "model", data=drawn_records)
    with pytest.raises(DataError, match="not a complete export"):
        exported.load(tmp_path / "model")


@pytest.mark.parametrize(("folder", "what"), [("none", "no such folder"), (".", "not a complete export")])
def test_folder_without_an_export_raises(tmp_path, folder, what):
    with pytest.raises(DataError, match=what):
        exported.load(tmp_path / folder)


def test_export_of_another_version_raises(tiny_model, tmp_path):
    content = json.loads((tiny_model / exported.MANIFEST).read_text())
    (tmp_path / exported.MANIFEST).write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(DataError, match="has format version 99, this carbrand reads version 1"):
        exported.load(tmp_path)
