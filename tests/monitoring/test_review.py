import contextlib
import csv
import json
import pathlib

import logs
import numpy as np
import pytest
import tensorflow as tf

from beam_jobs import build_dataset
from carbrand import cli, exported, files
from carbrand.data import manifest
from carbrand.errors import ConfigError, DataError
from carbrand.monitoring import monitor, review
from carbrand.serving.predictor import Predictor
from carbrand.training import checkpoint


@pytest.fixture
def log(drawn_photos, tmp_path):
    """A log of twelve drawn photos, which are kept, and of one that is not."""
    rows = []
    for number, path in enumerate(sorted(drawn_photos.glob("*/0*.jpg"))[::4][:12]):
        content = path.read_bytes()
        sha256 = files.sha256(content)
        files.write_bytes(tmp_path / "log" / "photos" / sha256[:2] / sha256, content)
        rows.append(logs.row(number, sha256=sha256, probability=0.3 + number / 20, is_unknown=number == 11))
    return logs.write(tmp_path / "log", [*rows, logs.row(99, probability=0.1)])


def table_of(folder):
    with (folder / review.TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_photos_of_a_log_are_copied_and_listed(model, log, tmp_path):
    found = review.run(model, tmp_path / "out", log=log, photos=6)
    rows = table_of(tmp_path / "out")
    assert [row["path"] for row in rows] == [candidate.path for candidate in found]
    assert {row["brand"] for row in rows} == {""}
    assert sorted(row["chosen"] for row in rows) == ["by chance"] * 2 + ["unknown"] + ["unsure"] * 3
    for row in rows:
        assert row["path"] == f"photos/{row['sha256']}.jpg"
        assert files.sha256_of_file(tmp_path / "out" / row["path"]) == row["sha256"]


def test_a_table_that_is_filled_in_becomes_records_and_tells_the_accuracy(model, log, drawn_photos, tmp_path):
    review.run(model, tmp_path / "out", log=log, photos=12)
    brands = {files.sha256_of_file(path): path.parent.name for path in drawn_photos.glob("*/0*.jpg")}
    rows = [{**row, "brand": brands[row["sha256"]]} for row in table_of(tmp_path / "out")]
    with (tmp_path / "review.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    build_dataset.run(tmp_path / "review.csv", tmp_path / "records", paths_from=str(tmp_path / "out"))
    splits = manifest.load(tmp_path / "records").splits
    photos = [photo for split in splits for photo in manifest.load_photos(tmp_path / "records", split)]
    built = {photo.sha256: photo.brand for photo in photos}
    assert built == {row["sha256"]: row["brand"] for row in rows}
    found = monitor.run(model, log, tmp_path / "monitoring", labels=tmp_path / "review.csv")
    assert found.accuracy.photos == sum(row["chosen"] == "by chance" for row in rows) == 12
    assert found.accuracy.value == 0  # the log says audi


def test_photos_of_records_are_ranked_by_doubt(tiny_model, drawn_records, tmp_path, monkeypatch):
    photos = list(review.photos_of(drawn_records))
    brands = sorted({photo.row.brand for photo in photos})
    wrong = [photos[3], photos[11]]

    def features(_, given):
        """What a model sees that tells the brands apart, and sees another one in two photos."""
        seen = [brands.index(photo.row.brand) for photo in given]
        for photo in wrong:
            number = [other.row.sha256 for other in given].index(photo.row.sha256)
            seen[number] = (seen[number] + 1) % len(brands)
        return np.eye(len(brands))[seen]

    monkeypatch.setattr(review, "features_of", features)
    found = review.run(tiny_model, tmp_path / "out", data=drawn_records)
    assert {candidate.sha256 for candidate in found} == {photo.row.sha256 for photo in wrong}
    for candidate in found:
        assert candidate.label == pathlib.Path(candidate.path).parent.name
        assert candidate.suggested == brands[(brands.index(candidate.label) + 1) % len(brands)]
    assert len(table_of(tmp_path / "out")) == 2
    assert not (tmp_path / "out" / "photos").exists()


def test_features_are_what_the_head_turns_into_logits(tiny_model, tiny_run, drawn_records):
    photos = list(review.photos_of(drawn_records))[:40]
    found = review.features_of(tiny_model, photos)
    assert found.shape == (40, 2048)
    encoded = tf.constant([photo.encoded() for photo in photos])
    logits = exported.load_graph(tiny_model).signatures["serving_default"](encoded)["logits"].numpy()
    kernel, bias = checkpoint.load_model(tiny_run)[0].get_layer("logits").get_weights()
    np.testing.assert_allclose(found @ kernel + bias, logits, atol=1e-3)


def test_a_model_of_an_older_carbrand_has_no_features(tiny_model, drawn_records, monkeypatch):
    monkeypatch.setattr(Predictor, "signatures", {"serving_default": None})
    with pytest.raises(DataError, match="has no signature 'features', as older exports. Export the run again"):
        review.features_of(tiny_model, list(review.photos_of(drawn_records)))


@contextlib.contextmanager
def opened(browser, folder):
    told = []
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto((folder / review.PAGE).as_uri())
    yield page
    context.close()
    assert told == []


def test_the_page_saves_what_was_named(model, log, tmp_path, browser):
    found = review.run(model, tmp_path / "out", log=log, photos=6)
    with opened(browser, tmp_path / "out") as page:
        assert page.locator("figure img").count() == 6
        page.locator("figure input").nth(1).fill('Škoda, "new"')
        page.locator("figure").nth(3).locator("button").click()
        assert page.locator("#told").inner_text() == "2 of 6 named, not saved"
        with page.expect_download() as download:
            page.locator("#save").click()
        assert page.locator("#told").inner_text() == "2 of 6 named"
        assert download.value.suggested_filename == "labels.csv"
        download.value.save_as(tmp_path / "saved" / "review.csv")
        page.reload()
        assert page.locator("#told").inner_text() == "2 of 6 named"
        assert page.locator("figure input").nth(1).input_value() == 'Škoda, "new"'
    rows = table_of(tmp_path / "saved")
    assert [row["brand"] for row in rows] == ['Škoda, "new"', "audi"]
    expected = table_of(tmp_path / "out")
    assert [row | {"brand": ""} for row in rows] == [expected[1], expected[3]]
    assert rows[0]["sha256"] == found[1].sha256


def test_the_page_escapes_what_it_shows(model, log, tmp_path):
    (path,) = log.glob("*.jsonl")
    rows = [{**json.loads(line), "brand": "</script><b>"} for line in path.read_text().splitlines()]
    logs.write(log, rows, path.name)
    review.run(model, tmp_path / "out", log=log)
    assert "</script><b>" not in (tmp_path / "out" / review.PAGE).read_text()


def test_bad_input_is_named(model, log, drawn_records, tmp_path):
    with pytest.raises(ConfigError, match="Give one of --log and --data"):
        review.run(model, tmp_path / "out", log=log, data=drawn_records)
    with pytest.raises(ConfigError, match="--photos=0: give a whole number at least 1"):
        review.run(model, tmp_path / "out", log=log, photos=0)
    with pytest.raises(ConfigError, match="log: is not empty, and may hold labels. Name a new folder"):
        review.run(model, log, log=log)
    logs.write(tmp_path / "other", [logs.row(1)])
    with pytest.raises(DataError, match="photos: holds none of the 1 photos in .*other. Serve with --keep_photos"):
        review.run(model, tmp_path / "out", log=tmp_path / "other")
    with pytest.raises(ConfigError, match="--seed=-1: give a whole number at least 0"):
        review.run(model, tmp_path / "out", log=log, seed=-1)
    with pytest.raises(ConfigError, match="lies in the model"):
        review.run(model, model / "2", log=log)
    for path in log.glob("photos/*/*"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the 12 chosen photos can be used"):
        review.run(model, tmp_path / "out", log=log)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".unfinished-*"))


def test_photos_that_were_not_kept_are_told(model, log, tmp_path, caplog):
    review.run(model, tmp_path / "out", log=log)
    assert f"{log / 'photos'}: holds 12 of the 13 photos; the others cannot be chosen" in caplog.text


def test_a_kept_photo_that_is_damaged_is_left_out(model, log, tmp_path, caplog):
    damaged = sorted(log.glob("photos/*/*"))[0]
    damaged.write_bytes(b"broken")
    found = review.run(model, tmp_path / "out", log=next(log.glob("*.jsonl")))
    assert len(found) == 11
    assert f"{damaged}: left out, not_an_image: starts with b'broken'" in caplog.text


def test_records_that_say_too_little_are_named(model, drawn_photos, tmp_path):
    for number in range(2):
        for brand in ("arvena", "belmarr"):
            for path in sorted((drawn_photos / brand).glob("0*.jpg"))[2 * number : 2 * number + 2]:
                files.write_bytes(tmp_path / "photos" / brand / path.name, path.read_bytes())
    build_dataset.run(tmp_path / "photos", tmp_path / "records")
    with pytest.raises(DataError, match="has too few photos to say something of each .* and one with 5 photos"):
        review.run(model, tmp_path / "out", data=tmp_path / "records")
    with pytest.raises(ConfigError, match="--since and --until choose answers of a log. Give --log"):
        review.run(model, tmp_path / "out", data=tmp_path / "records", since="2026-11-01")


def test_the_command_says_where_the_page_is(model, log, tmp_path, capsys):
    arguments = ["review", "--model", model, "--log", log, "--output", tmp_path / "out", "--photos", 5]
    assert cli._run(cli._parse(["carbrand", *map(str, arguments)])) == 0
    assert capsys.readouterr().out == f"Review, 5 photos: {tmp_path / 'out' / 'review.html'}\n"
