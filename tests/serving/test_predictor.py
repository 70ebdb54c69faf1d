import concurrent.futures
import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from carbrand.data import records
from carbrand.data.reader import RecordReader
from carbrand.errors import ConfigError, DataError
from carbrand.serving import predictor as module
from carbrand.serving.predictor import Failure, Predictor


@pytest.fixture(scope="module")
def predictor(tiny_model):
    return Predictor(tiny_model)


def test_photos_get_the_answer_they_get_from_their_records(predictor, drawn_photos, drawn_records):
    reader = RecordReader(drawn_records, "test")
    stored = [records.decode(tf.constant(reader.read(n))) for n in range(len(reader))]
    paths = [drawn_photos / record["image/filename"].numpy().decode() for record in stored]
    ours = np.stack([prediction.probabilities for prediction in predictor.predict(paths)])
    signature = predictor.signatures["serving_default"](tf.stack([record["image/encoded"] for record in stored]))
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
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    for ours, theirs in zip(predictor.predict(paths), expected, strict=True):
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-6)


def test_pil_images_and_arrays_get_the_answer_of_their_files(predictor, drawn_photos):
    path = drawn_photos / "arvena" / "0001.jpg"
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = turned.getexif()
        exif[0x0112] = 6
        as_file = io.BytesIO()
        image.save(as_file, "PNG")
        lying = image.transpose(Image.Transpose.ROTATE_90)
        from_file, from_pil, from_array, from_turned, from_lying = predictor.predict(
            [as_file.getvalue(), image, np.asarray(image), turned, lying]
        )
        cmyk = image.convert("CMYK")
        saved = io.BytesIO()
        cmyk.save(saved, "TIFF")
        from_cmyk, from_cmyk_file = predictor.predict([cmyk, saved.getvalue()])
    for other in (from_pil, from_array):
        np.testing.assert_allclose(other.probabilities, from_file.probabilities, atol=1e-6)
    # It is shrunk as it lies, then turned: the roundings are others.
    np.testing.assert_allclose(from_turned.probabilities, from_file.probabilities, atol=1e-3)
    assert np.abs(from_lying.probabilities - from_file.probabilities).max() > 1e-2
    np.testing.assert_allclose(from_cmyk.probabilities, from_cmyk_file.probabilities, atol=1e-6)


@pytest.mark.parametrize("array", [np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 4), np.uint8)])
def test_an_array_that_is_no_photo_raises(predictor, array):
    with pytest.raises(DataError, match=r"an array \[9, 9, .\] .*: give \[H, W, 3\] RGB or \[H, W\], uint8"):
        predictor.predict([array])


@pytest.mark.parametrize("photos", ["a.jpg", b"bytes", [None], [bytearray(b"x")]])
def test_what_are_no_photos_raises(predictor, photos):
    with pytest.raises(DataError, match="give a list of photos|give bytes, a path, a PIL image or an array"):
        predictor.predict(photos)


def test_photos_without_pixels_keep_their_place(predictor, drawn_photos):
    good = drawn_photos / "arvena" / "0001.jpg"
    results = predictor.predict(iter([np.zeros((0, 0, 3), np.uint8), good, "a\0b", Image.new("RGB", (0, 5))]))
    assert [isinstance(result, Failure) for result in results] == [True, False, True, True]


def test_one_photo_that_the_graph_cannot_decode_does_not_fail_its_neighbours(predictor, drawn_photos):
    good = predictor.normalise(drawn_photos / "arvena" / "0001.jpg")
    bad = dataclasses.replace(good, encoded=b"broken")
    first, failure, last = predictor.predict_normalised([good, bad, good])
    assert failure.reason.startswith("decode_error: ")
    np.testing.assert_allclose(first.probabilities, last.probabilities, atol=1e-6)


def test_many_threads_get_their_own_answers(predictor, drawn_photos):
    paths = sorted(drawn_photos.glob("*/0*.jpg"))[:12]
    expected = [result.probabilities for result in predictor.predict(paths)]
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda path: predictor.predict([path])[0].probabilities, paths))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_heat_map_is_a_picture_of_the_networks_size(predictor, drawn_photos):
    content = predictor.heatmap(drawn_photos / "arvena" / "0001.jpg", predictor.brands[0])
    assert Image.open(io.BytesIO(content)).size == (32, 32)
    assert isinstance(predictor.heatmap(b"", predictor.brands[0]), Failure)
    with pytest.raises(ConfigError, match="brand 'lada': the model knows arvena"):
        predictor.heatmap(drawn_photos / "arvena" / "0001.jpg", "lada")


def test_more_pixels_than_allowed_are_a_failure(tiny_model, drawn_photos):
    small = Predictor(tiny_model, max_pixels=1000)
    assert small.predict([drawn_photos / "arvena" / "0001.jpg"])[0].reason.startswith("too_large: ")


def test_a_process_that_predicts_loads_neither_gin_nor_beam(tiny_model, drawn_photos):
    code = (
        "import sys, carbrand; p = carbrand.Predictor(sys.argv[1]).predict([sys.argv[2]])[0]; "
        "print(p.brand, 'gin' in sys.modules, 'apache_beam' in sys.modules)"
    )
    photo = drawn_photos / "arvena" / "0001.jpg"
    done = subprocess.run([sys.executable, "-c", code, tiny_model, photo], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["False", "False"]
