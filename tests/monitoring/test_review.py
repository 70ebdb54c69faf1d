import contextlib
import csv
import json
import pathlib

import logs
import pytest

from beam_jobs import build_dataset
from carbrand import files
from carbrand.data import catalogue, manifest
from carbrand.errors import ConfigError, DataError
from carbrand.monitoring import monitor, review


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
    found = review.run(model, tmp_path / "out", log=log, num_photos=6)
    rows = table_of(tmp_path / "out")
    assert [row["path"] for row in rows] == [candidate.path for candidate in found]
    assert {row["brand"] for row in rows} == {""}
    assert sorted(row["chosen"] for row in rows) == ["by chance"] * 2 + ["unknown"] + ["unsure"] * 3
    for row in rows:
        assert row["path"] == f"photos/{row['sha256']}.jpg"
        assert files.sha256_of_file(tmp_path / "out" / row["path"]) == row["sha256"]


def test_a_table_that_is_filled_in_becomes_records_and_tells_the_accuracy(model, log, drawn_photos, tmp_path):
    review.run(model, tmp_path / "out", log=log, num_photos=12)
    brands = {files.sha256_of_file(path): path.parent.name for path in drawn_photos.glob("*/0*.jpg")}
    rows = [{**row, "brand": brands[row["sha256"]]} for row in table_of(tmp_path / "out")]
    with (tmp_path / "review.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    build_dataset.run(tmp_path / "review.csv", tmp_path / "records", paths_from=str(tmp_path / "out"))
    dataset = manifest.load(tmp_path / "records")
    shards = [shard.name for split in dataset.splits.values() for shard in split.shards]
    built = {photo.sha256: photo.brand for photo in catalogue.of_shards(tmp_path / "records", shards)}
    assert built == {row["sha256"]: row["brand"] for row in rows}
    found = monitor.run(model, log, tmp_path / "monitoring", labels=tmp_path / "review.csv")
    assert found.accuracy.photos == sum(row["chosen"] == "by chance" for row in rows) == 4
    assert found.accuracy.value == 0  # the log says audi


def test_photos_of_records_are_ranked_by_doubt(tiny_model, drawn_records, tmp_path):
    found = review.run(tiny_model, tmp_path / "out", data=drawn_records, num_photos=5)
    assert 1 <= len(found) <= 5
    for candidate in found:
        assert candidate.label == pathlib.Path(candidate.path).parent.name != candidate.suggested
        assert pathlib.Path(candidate.path).is_file()
    assert not (tmp_path / "out" / "photos").exists()


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
    found = review.run(model, tmp_path / "out", log=log, num_photos=6)
    with opened(browser, tmp_path / "out") as page:
        assert page.locator("figure img").count() == 6
        page.locator("figure input").nth(1).fill('Škoda, "new"')
        page.locator("figure").nth(3).locator("button").click()
        assert page.locator("#told").inner_text() == "2 of 6 named, not saved"
        with page.expect_download() as download:
            page.locator("#save").click()
        assert page.locator("#told").inner_text() == "2 of 6 named"
        assert download.value.suggested_filename == "review.csv"
        download.value.save_as(tmp_path / "saved" / "review.csv")
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
        review.run(model, tmp_path / "out", log=log, num_photos=0)
    with pytest.raises(ConfigError, match="log: is not empty, and may hold labels. Name a new folder"):
        review.run(model, log, log=log)
    logs.write(tmp_path / "other", [logs.row(1)])
    with pytest.raises(DataError, match="other: keeps none of the 1 photos. Serve with --keep_photos"):
        review.run(model, tmp_path / "out", log=tmp_path / "other")
    for path in log.glob("photos/*/*"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="not_an_image: starts with b'broken'. Remove it"):
        review.run(model, tmp_path / "out", log=log)
