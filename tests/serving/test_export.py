import io
import json
import shutil

import keras
import numpy as np
import PIL.Image
import pytest
import scipy.special
import tensorflow as tf

from carbrand import exported, files
from carbrand.data import manifest
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError, DataError, GateError
from carbrand.serving import export, graph, parity
from carbrand.serving.predictor import Predictor
from carbrand.training import checkpoint, weights
from carbrand.training.model import ModelSpec, build_model


def test_graph_takes_encoded_photos_and_returns_brands(tiny_model, drawn_photos, drawn_records):
    brands = manifest.load(drawn_records).brands
    signature = tf.saved_model.load(str(tiny_model)).signatures["serving_default"]
    photos = [(drawn_photos / brand / "0001.jpg").read_bytes() for brand in brands[:2]]
    answer = signature(tf.constant(photos))
    probabilities = answer["probabilities"].numpy()
    assert probabilities.shape == (2, 6)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert [b.decode() for b in answer["brand"].numpy()] == [brands[i] for i in probabilities.argmax(-1)]
    np.testing.assert_array_equal(answer["probability"], probabilities.max(-1))


def test_each_variable_is_stored_once(tiny_model):
    names = [name for name, _ in tf.train.list_variables(str(tiny_model / "variables" / "variables"))]
    assert sum(name.startswith("weights/") for name in names) == 320
    size = sum(path.stat().st_size for path in (tiny_model / "variables").iterdir())
    assert size < 4.1 * 23_600_005  # float32, and a little


def test_manifest_holds_what_prediction_needs(tiny_model, drawn_records):
    description, dataset = exported.load(tiny_model), manifest.load(drawn_records)
    assert description.brands == dataset.brands
    assert description.resize_short_px == dataset.resize_short_px == 96
    assert description.facts["trained_on"] == dataset.fingerprint


def test_an_export_holds_what_it_answers_for_test_photos(tiny_model, drawn_photos, drawn_records):
    rows = list(files.read_jsonl(tiny_model / exported.REFERENCE))
    assert len(rows) == manifest.load(drawn_records).splits["test"].num_examples
    path_of = {files.sha256_of_file(path): path for path in drawn_photos.rglob("*.jpg")}
    paths = [path_of[row["sha256"]] for row in rows]
    for row, path, answer in zip(rows, paths, Predictor(tiny_model).predict(paths), strict=True):
        assert (row["label"], row["brand"]) == (path.parent.name, answer.brand)
        assert row["probability"] == pytest.approx(answer.probability, rel=1e-5)
        with PIL.Image.open(path) as image:
            assert (row["width"], row["height"]) == image.size


def test_weights_of_an_export_load_into_a_model(tiny_model, tiny_run):
    model = build_model(("x", "y"), ModelSpec())
    assert weights.load(model, str(tiny_model), "v1").backbone_fraction == 1
    stored = checkpoint.load_run(tiny_run).model["conv5_block3_3_conv/kernel"]
    np.testing.assert_array_equal(model.get_layer("conv5_block3_3_conv").kernel.numpy(), stored)


def test_probabilities_are_calibrated_and_logits_are_not(tiny_model, tiny_run, drawn_photos, drawn_records):
    model, meta = checkpoint.load_model(tiny_run)
    description = exported.load(tiny_model)
    photo = next((drawn_photos / description.brands[0]).glob("0*.jpg")).read_bytes()
    answer = tf.saved_model.load(str(tiny_model)).signatures["serving_default"](tf.constant([photo]))
    raw = model(parity.network_inputs(Preprocess(**meta["config"]["preprocess"]), [photo]), training=False)
    np.testing.assert_allclose(tf.nn.softmax(answer["logits"]), raw, atol=1e-5)
    scaled = scipy.special.softmax(answer["logits"].numpy() / description.temperature, axis=1)
    np.testing.assert_allclose(answer["probabilities"], scaled, atol=1e-6)
    assert description.temperature == checkpoint.temperature(meta)


def test_pixels_and_bytes_get_the_same_answer(tiny_model, drawn_photos):
    photo = (drawn_photos / "arvena" / "0001.jpg").read_bytes()
    signatures = tf.saved_model.load(str(tiny_model)).signatures
    of_bytes = signatures["serving_default"](tf.constant([photo]))
    of_pixels = signatures["pixels"](tf.io.decode_jpeg(photo)[tf.newaxis])
    for name, values in of_bytes.items():
        if name != "brand":
            np.testing.assert_allclose(values, of_pixels[name], atol=1e-5)


def test_classification_sorts_the_brands(tiny_model, drawn_photos):
    photos = [(drawn_photos / "arvena" / f"{n:04d}.jpg").read_bytes() for n in (1, 2)]
    examples = [
        tf.train.Example(features=tf.train.Features(feature={exported.EXAMPLE_FEATURE: _bytes_feature(photo)}))
        for photo in photos
    ]
    signatures = tf.saved_model.load(str(tiny_model)).signatures
    answer = signatures["classify"](tf.constant([example.SerializeToString() for example in examples]))
    brands = np.array(exported.load(tiny_model).brands)
    expected = signatures["serving_default"](tf.constant(photos))["probabilities"].numpy()
    order = np.argsort(-expected, axis=1, kind="stable")
    np.testing.assert_array_equal(answer["classes"].numpy().astype(str), brands[order])
    np.testing.assert_allclose(answer["scores"], np.take_along_axis(expected, order, axis=1), atol=1e-6)


def _bytes_feature(content):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))


def test_unknown_score_is_the_share_of_known_photos_that_are_nearer_to_another():
    # Known photos in pairs, 1, 2, … 20 degrees apart: a photo at 10.5 degrees from its nearest is farther than half.
    # Each of them twice, in a group: a sibling is not another.
    angles = np.radians([place for n in range(1, 21) for place in (17 * n, 17 * n + n / 2)])[:, np.newaxis]
    known = np.repeat(5 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1), 2, axis=0)
    groups = np.repeat(np.arange(len(angles)), 2).tolist()
    keras.utils.set_random_seed(0)
    model = build_model(("a", "b"), ModelSpec(), image_size_px=(32, 32))
    with_known = {"known_features": known, "known_groups": groups}
    module = graph.ServingModule(model, ("a", "b"), Preprocess(32), temperature=1.0, **with_known)
    for degrees, share in ((0.1, 0.0), (5.25, 0.5), (12.0, 1.0)):
        angle = np.radians(17 - degrees)
        features = tf.constant([[2 * np.cos(angle), 2 * np.sin(angle)]], tf.float32)
        module._network = lambda images, features=features: (features, tf.constant([[0.0, 1.0]]))
        score = module._answers(tf.zeros((1, 32, 32, 3), tf.uint8))["unknown_score"].numpy()[0]
        assert score == pytest.approx(share, abs=0.03)


def test_what_a_killed_export_left_is_no_something_else(tmp_path):
    (tmp_path / ".unfinished-x").mkdir()
    exported.check_output(tmp_path)
    with exported.new_version(tmp_path) as folder:
        (folder / "model.json").touch()
    assert (tmp_path / "1").is_dir()


def test_a_number_that_is_taken_is_not_given_again(tmp_path):
    for name in ("2", "0007", "²"):
        (tmp_path / name).mkdir()  # as a version that is being copied
    for number in (3, 4):
        with exported.new_version(tmp_path) as folder:
            (folder / "model.json").touch()
        assert exported.versions(tmp_path)[-1] == number
    assert exported.find(tmp_path) == tmp_path / "4"


def test_a_model_may_lie_in_any_path(tiny_model, tmp_path):
    odd = shutil.copytree(exported.find(tiny_model), tmp_path / "set[1]" / "a*b?" / "1")
    photo = np.full((64, 64, 3), 128, np.uint8)
    (found,), (expected,) = (Predictor(folder).predict([photo]) for folder in (odd, tiny_model))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_a_format_that_answers_with_no_number_fails_the_gate():
    rows = [exported.Format("int8", 1, float("nan"), 0.5)]
    assert parity.failures(rows).startswith("int8's probabilities differ by nan, 1 is allowed; int8 names the same")


def test_a_folder_with_something_else_raises(tiny_run, drawn_records, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds something else than exported models. Give another folder"):
        export.run(tiny_run, tmp_path, data=drawn_records)
    with pytest.raises(ConfigError, match="is a file. Name a folder"):
        export.run(tiny_run, tmp_path / "notes.txt", data=drawn_records)


@pytest.mark.slow
def test_a_graph_that_answers_otherwise_is_not_exported(tiny_run, drawn_records, tmp_path, monkeypatch):
    monkeypatch.setitem(parity.MAX_DIFFERENCE, "saved_model", -1.0)
    with pytest.raises(GateError, match="saved_model's probabilities differ by .* Nothing was exported"):
        export.run(tiny_run, tmp_path / "model", data=drawn_records)
    assert not list((tmp_path / "model").iterdir())


def test_parity_photos_are_of_odd_formats_too(drawn_records):
    photos = parity.photos(drawn_records, manifest.load(drawn_records))
    kinds = {PIL.Image.open(io.BytesIO(photo)).format for photo in photos}
    assert {"JPEG", "PNG", "WEBP", "AVIF"} <= kinds


@pytest.mark.slow
def test_a_second_export_is_a_new_version_with_tflite_that_answers_nearly_as_the_run(
    tiny_run, tiny_model, drawn_records, tmp_path, caplog
):
    caplog.set_level("INFO")
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model / "1")
    folder = export.run(tiny_run, model, data=drawn_records, formats=["float16"])
    assert exported.versions(model) == [1, 2]
    assert folder == exported.find(model) == model / "2"
    assert exported.find(model / "1") == model / "1"
    saved_model, float16 = exported.load(folder).formats
    assert float16.size_bytes == (folder / "float16.tflite").stat().st_size < 0.6 * saved_model.size_bytes
    assert float16.max_difference <= 1e-2
    assert saved_model.max_difference <= 1e-5
    assert "float16" in caplog.text


def test_an_unknown_format_raises(tiny_run, drawn_records, tmp_path):
    with pytest.raises(ConfigError, match="--formats='onnx' is not one of 'float16', 'int8'"):
        export.run(tiny_run, tmp_path / "model", data=drawn_records, formats=["onnx"])


def test_too_few_agreements_fail_the_gate():
    rows = [exported.Format("int8", 1, 0.5, 0.96)]
    assert parity.failures(rows) == "int8 names the same brand for 96.0%, 97% are needed"
    assert parity.failures([exported.Format("int8", 1, 0.5, 0.97)]) == ""
    assert "differ by nan" in parity.failures([exported.Format("float16", 1, float("nan"), 1.0)])


@pytest.mark.parametrize(("folder", "what"), [("none", "no such folder"), (".", "holds no exported model")])
def test_folder_without_an_export_raises(tmp_path, folder, what):
    with pytest.raises(DataError, match=what):
        exported.load(tmp_path / folder)


@pytest.mark.parametrize("content", ["[]", "null", '{"format_version": 2}', '{"format_version": 2, "x": 1}', "{"])
def test_a_damaged_manifest_raises(tmp_path, content):
    (tmp_path / exported.MANIFEST).write_text(content)
    with pytest.raises(DataError, match=r"model\.json: damaged \(.*\)\. Export the run again"):
        exported.load(tmp_path)


def test_export_of_another_version_raises(tiny_model, tmp_path):
    content = json.loads((tiny_model / exported.MANIFEST).read_text())
    (tmp_path / exported.MANIFEST).write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(DataError, match="has format version 99, this carbrand reads version 2"):
        exported.load(tmp_path)
