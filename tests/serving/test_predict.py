import csv
import io
import json
import shutil
import sys

import pytest

from carbrand.data import manifest
from carbrand.errors import ConfigError, DataError
from carbrand.serving import predict


def test_csv_of_a_folder(tiny_model, drawn_photos, drawn_records, tmp_path):
    output = tmp_path / "predictions.csv"
    assert predict.run(tiny_model, [str(drawn_photos / "arvena")], output_format="csv", output=output) == (9, 1)
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["path"].rpartition("/")[2] for row in rows] == [*(f"{n:04d}.jpg" for n in range(1, 9)), "page.jpg"]
    assert rows[-1]["error"].startswith("not_an_image")
    assert rows[0]["is_unknown"] in ("True", "False")
    assert {f"probability_{brand}" for brand in manifest.load(drawn_records).brands} < rows[0].keys()


def test_jsonl_to_a_file(tiny_model, drawn_photos, tmp_path):
    photo = str(drawn_photos / "arvena" / "0001.jpg")
    predict.run(tiny_model, [photo], output_format="jsonl", output=tmp_path / "p.jsonl")
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert row["path"] == photo
    assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["brand"]]


def test_table_is_aligned(tiny_model, drawn_photos, capsys):
    photos = [str(drawn_photos / "arvena" / name) for name in ("0001.jpg", "page.jpg")]
    predict.run(tiny_model, photos)
    first, second = capsys.readouterr().out.splitlines()
    assert first.index("%") == len(photos[0]) + 7
    assert "—  not_an_image" in second


def test_patterns_lists_and_stdin(tiny_model, drawn_photos, tmp_path, capsys, monkeypatch):
    folder = drawn_photos / "arvena"
    (tmp_path / "list.txt").write_text(f"{folder}/0003.jpg\n{folder}/0002.jpg\n")
    photo = io.TextIOWrapper(io.BytesIO((folder / "0001.jpg").read_bytes()))
    monkeypatch.setattr(sys, "stdin", photo)
    given = [f"{folder}/000[67].jpg", "-"]
    predict.run(tiny_model, given, names_from=str(tmp_path / "list.txt"), output_format="csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    names = [row["path"].rpartition("/")[2] for row in rows]
    assert names == ["0006.jpg", "0007.jpg", "-", "0003.jpg", "0002.jpg"]
    assert not any(row["error"] for row in rows)


def test_a_table_of_photos(tiny_model, drawn_photos, tmp_path, capsys):
    shutil.copy(drawn_photos / "arvena" / "0002.jpg", tmp_path)
    (tmp_path / "list.csv").write_text("brand,path\nx,0002.jpg\n")
    predict.run(tiny_model, [], names_from=str(tmp_path / "list.csv"), output_format="jsonl")
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == str(tmp_path / "0002.jpg")
    assert "error" not in row


@pytest.mark.parametrize(
    ("path", "message"),
    [("none", "no such file or folder"), (".", "no files in there"), ("*.jpg", "no file fits this pattern")],
)
def test_nothing_to_predict_raises(tiny_model, tmp_path, path, message):
    with pytest.raises(DataError, match=message):
        predict.run(tiny_model, [str(tmp_path / path)])


@pytest.mark.parametrize("output", ["{photo}", "other.jpg", "new.PNG"])
def test_no_photo_is_replaced(tiny_model, drawn_photos, tmp_path, output):
    photo = shutil.copy(drawn_photos / "arvena" / "0001.jpg", tmp_path / "photo")
    with pytest.raises(ConfigError, match="is one of the inputs|is named like a photo"):
        predict.run(tiny_model, [str(photo)], output=output.format(photo=photo))


def test_neither_the_list_nor_the_model_is_written_to(tiny_model, drawn_photos, tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text(f"path\n{drawn_photos}/arvena/0001.jpg\n")
    with pytest.raises(ConfigError, match=r"--output=.*list\.csv: is one of the inputs"):
        predict.run(tiny_model, [], names_from=str(listed), output=listed)
    with pytest.raises(ConfigError, match=r"--output=.*rows\.csv: lies in the model"):
        predict.run(tiny_model, [], names_from=str(listed), output=tiny_model / "rows.csv")


def test_control_characters_of_names_are_escaped(tiny_model, drawn_photos, tmp_path, capsys):
    shutil.copy(drawn_photos / "arvena" / "0001.jpg", tmp_path / "a\n\x1b.jpg")
    predict.run(tiny_model, [str(tmp_path)])
    (line,) = capsys.readouterr().out.splitlines()
    assert r"a\n\x1b.jpg" in line


def test_no_photos_at_all_raise(tiny_model):
    with pytest.raises(ConfigError, match="No photos are given"):
        predict.run(tiny_model, [])


def test_an_unknown_format_raises(tiny_model):
    with pytest.raises(ConfigError, match="--format='xml' is not one of 'table', 'csv', 'jsonl'"):
        predict.run(tiny_model, ["x"], output_format="xml")
