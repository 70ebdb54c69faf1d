import PIL.Image
import PIL.ImageChops
import pytest

from carbrand.errors import ConfigError, DataError
from carbrand.evaluation import explain


@pytest.fixture(scope="module")
def photo(drawn_photos):
    return sorted(drawn_photos.rglob("*.jpg"))[0]


def size_of(path):
    with PIL.Image.open(path) as picture:
        return picture.size


@pytest.mark.slow
def test_a_run_and_its_export_explain_alike(tiny_run, tiny_model, photo, tmp_path):
    explain.run([photo], tmp_path / "run.png", run_dir=tiny_run, brands=["belmarr", "tavoq"])
    explain.run([photo], tmp_path / "model.png", model_dir=tiny_model, brands=["belmarr", "tavoq"])
    with PIL.Image.open(tmp_path / "run.png") as ours, PIL.Image.open(tmp_path / "model.png") as theirs:
        assert ours.size == theirs.size
        largest = max(high for _, high in PIL.ImageChops.difference(ours, theirs).getextrema())
    assert largest <= 2  # rounding


def test_each_photo_has_its_row(tiny_run, photo, tmp_path):
    explain.run([photo], tmp_path / "one.png", run_dir=tiny_run)
    explain.run([photo, photo], tmp_path / "two.jpg", run_dir=tiny_run)
    assert size_of(tmp_path / "two.jpg")[1] > 1.5 * size_of(tmp_path / "one.png")[1]


def test_too_many_photos_for_a_jpeg_are_told_before_the_work(tiny_run, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(explain, "_image", lambda *_: pytest.fail("explained a photo"))
    with pytest.raises(ConfigError, match=r"a JPEG cannot be 70400 px high, which 2200 photos need .* or a \.png"):
        explain.run([photo] * 2200, tmp_path / "out.jpg", run_dir=tiny_run)


def test_a_picture_in_a_file_is_told_before_the_work(photo, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="folder of --output=.*file: is a file. Name a folder."):
        explain.run([photo], tmp_path / "file" / "out.png", run_dir=tmp_path)


def test_bad_input_is_named(tiny_run, photo, tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    with pytest.raises(DataError, match=r"text\.jpg: not_an_image: .*\. Give another photo\."):
        explain.run([text], tmp_path / "out.png", run_dir=tiny_run)
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read \(No such file or directory\)"):
        explain.run([tmp_path / "gone.jpg"], tmp_path / "out.png", run_dir=tiny_run)
    with pytest.raises(ConfigError, match="--brand=lada: the model knows arvena, belmarr"):
        explain.run([photo], tmp_path / "out.png", run_dir=tiny_run, brands=["lada"])
    with pytest.raises(ConfigError, match="out.gif"):
        explain.run([photo], tmp_path / "out.gif", run_dir=tiny_run)
