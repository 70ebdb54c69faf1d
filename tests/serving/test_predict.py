import csv
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from carbrand.data import manifest, records
from carbrand.data.reader import RecordReader
from carbrand.errors import DataError
from carbrand.serving import predict
from carbrand.serving.predict import Failure, Predictor


@pytest.fixture(scope="module")
def predictor(tiny_model):
    return Predictor(tiny_model)


def test_photos_get_the_answer_they_get_from_their_records(predictor, drawn_photos, drawn_records):
    reader = RecordReader(drawn_records, "test")
    stored = [records.decode(tf.constant(reader.read(n))) for n in range(len(reader))]
    paths = [drawn_photos / record["image/filename"].numpy().decode() for record in stored]
    ours = np.stack([prediction.probabilities for prediction in predictor.predict(paths)])
    signature = predictor._signature(tf.stack([record["image/encoded"] for record in stored]))
    np.testing.assert_allclose(ours, signature["probabilities"], atol=1e-6)


def test_bytes_and_paths_and_formats_agree(predictor, drawn_photos):
    path = drawn_photos / "arvena" / "0001.jpg"
    webp = io.BytesIO()
    Image.open(path).save(webp, "WEBP", lossless=True)
    from_path, from_bytes, from_webp = predictor.predict([path, path.read_bytes(), webp.getvalue()])
    np.testing.assert_array_equal(from_path.probabilities, from_bytes.probabilities)
    np.testing.assert_allclose(from_path.probabilities, from_webp.probabilities, atol=1e-5)
    assert from_path.brand == predictor.brands[from_path.probabilities.argmax()]
    assert from_path.probability == from_path.probabilities.max()


def test_bad_photos_keep_their_place(predictor, drawn_photos):
    good = drawn_photos / "arvena" / "0001.jpg"
    results = predictor.predict([b"<html>", good, drawn_photos / "none.jpg", b""])
    assert [isinstance(result, Failure) for result in results] == [True, False, True, True]
    assert results[0].reason.startswith("not_an_image: starts with b'<html>'")
    assert results[2].reason == "unreadable: No such file or directory"


def test_more_photos_than_a_batch(predictor, drawn_photos, monkeypatch):
    paths = sorted(drawn_photos.glob("*/0*.jpg"))[:5]
    expected = predictor.predict(paths)
    monkeypatch.setattr(predict, "_BATCH", 2)
    for ours, theirs in zip(predictor.predict(paths), expected, strict=True):
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-6)


def test_csv_of_a_folder(tiny_model, drawn_photos, drawn_records):
    text, failures = predict.run(tiny_model, [str(drawn_photos / "arvena")], output_format="csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert failures == 1
    assert [row["path"].rpartition("/")[2] for row in rows] == [*(f"{n:04d}.jpg" for n in range(1, 9)), "page.jpg"]
    assert rows[-1]["error"].startswith("not_an_image")
    assert {f"probability_{brand}" for brand in manifest.load(drawn_records).brands} < rows[0].keys()


def test_jsonl_to_a_file(tiny_model, drawn_photos, tmp_path):
    photo = str(drawn_photos / "arvena" / "0001.jpg")
    predict.run(tiny_model, [photo], output_format="jsonl", output=tmp_path / "p.jsonl")
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert row["path"] == photo
    assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["brand"]]


def test_table_is_aligned(tiny_model, drawn_photos):
    photos = [str(drawn_photos / "arvena" / name) for name in ("0001.jpg", "page.jpg")]
    text, _ = predict.run(tiny_model, photos)
    first, second = text.splitlines()
    assert first.index("%") == len(photos[0]) + 7
    assert "—  not_an_image" in second


@pytest.mark.parametrize(("path", "message"), [("none", "no such file or folder"), (".", "no files in there")])
def test_nothing_to_predict_raises(tiny_model, tmp_path, path, message):
    with pytest.raises(DataError, match=message):
        predict.run(tiny_model, [str(tmp_path / path)])
