import shutil

import pytest

from carbrand.demo import demo
from carbrand.errors import ConfigError


@pytest.fixture
def stages(monkeypatch):
    """The stages that the demo starts; each leaves what the next one looks for."""
    started = []

    def stage(name, *arguments):
        started.append(name)
        folder = dict(zip(arguments[::2], arguments[1::2], strict=False))
        if name == "build":
            folder["--output"].mkdir()
            (folder["--output"] / "manifest.json").touch()
        if name == "train":
            folder["--run"].mkdir()
            (folder["--run"] / "run.json").touch()
        if name == "export":
            (folder["--output"] / "1").mkdir(parents=True)
            (folder["--output"] / "1" / "model.json").touch()
        if name == "evaluate":
            report = folder["--run"] / "evaluation-test"
            report.mkdir()
            (report / "report.json").write_text('{"metrics": {"accuracy": 0.5}}')
            (report / "predictions.csv").write_text("brand,filename\narvena,arvena/0002.jpg\narvena,arvena/0001.jpg\n")
        if name == "predict":
            started.append([path.name for path in arguments[2:]])

    monkeypatch.setattr(demo, "_stage", stage)
    return started


def test_second_run_repeats_only_the_prediction(stages, tmp_path, capsys):
    demo.run(tmp_path, photos_per_brand=1)
    assert stages == ["build", "train", "evaluate", "export", "predict", ["0002.jpg"]]
    assert "test accuracy 50.0%" in capsys.readouterr().out
    stages.clear()
    demo.run(tmp_path, photos_per_brand=1)
    assert stages == ["predict", ["0002.jpg"]]


def test_missing_export_is_made_up_for(stages, tmp_path):
    demo.run(tmp_path, photos_per_brand=1)
    shutil.rmtree(tmp_path / "model")
    stages.clear()
    demo.run(tmp_path, photos_per_brand=1)
    assert stages == ["export", "predict", ["0002.jpg"]]


@pytest.mark.parametrize("name", ["photos", "records", "run", "model"])
def test_what_no_demo_has_made_is_left_alone(stages, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"holds {name}, which is no demo's. Give another --dir"):
        demo.run(tmp_path, photos_per_brand=1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("option", [{"photos_per_brand": 0}, {"epochs": -1}, {"epochs": float("nan")}])
def test_numbers_that_cannot_work_leave_nothing(tmp_path, option):
    with pytest.raises(ConfigError, match=f"--{next(iter(option))}="):
        demo.run(tmp_path / "demo", **option)
    assert not (tmp_path / "demo").exists()


def test_a_demo_that_is_killed_while_it_draws_goes_on(stages, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(demo.draw, "photo", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            demo.run(tmp_path, photos_per_brand=1)
    demo.run(tmp_path, photos_per_brand=1)
    assert (tmp_path / "photos" / "arvena" / "0001.jpg").exists()


def test_a_damaged_note_raises(stages, tmp_path):
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(ConfigError, match=r"demo\.json: damaged"):
        demo.run(tmp_path, photos_per_brand=1)


def test_other_arguments_in_the_same_folder_raise(stages, tmp_path):
    demo.run(tmp_path, photos_per_brand=1)
    with pytest.raises(ConfigError, match="holds a demo made with .*'photos_per_brand': 1.* Give another --dir"):
        demo.run(tmp_path, photos_per_brand=2)


def test_failed_stage_ends_the_demo_with_its_code(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as stop:
        demo._stage("build", "--input", str(tmp_path / "none"), "--output", str(tmp_path / "records"))
    assert stop.value.code == 2
