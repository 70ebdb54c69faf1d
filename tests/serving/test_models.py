import asyncio
import pathlib
import shutil
import types

from carbrand import exported
from carbrand.errors import DataError
from carbrand.serving import serve
from carbrand.serving.batching import Batcher
from carbrand.serving.models import Models, Served, _files_in


class ToyModels(Models):
    """Whose versions are whole once they hold a file `graph`."""

    def _warm(self):
        folder = pathlib.Path(exported.find(self._folder))
        if not (folder / "graph").exists():
            raise DataError(f"{folder}: no graph")
        predictor = types.SimpleNamespace(folder=folder, brands=("a",), version=int(folder.name))
        return Served(predictor, Batcher(list), {}, _files_in(folder))


def add(folder, version, *names):
    (folder / str(version)).mkdir(exist_ok=True)
    for name in names:
        (folder / str(version) / name).write_text("{}")


async def loaded(folder):
    models = ToyModels(folder, max_pixels=1, max_batch=1, max_delay_s=0, max_waiting=1, watch=lambda *_: None)
    await models.load()
    return models


def test_a_version_that_is_copied_slowly_is_taken_up_once_it_is_whole(tmp_path, caplog):
    add(tmp_path, 1, exported.MANIFEST, "graph")

    async def looks(models, count):
        for _ in range(count):
            await models.reload_if_changed()
        return models.current.version

    async def take_up():
        models = await loaded(tmp_path)
        add(tmp_path, 2, exported.MANIFEST)
        assert await looks(models, 1) == 1
        assert "cannot be loaded" not in caplog.text  # it may not be whole yet
        assert await looks(models, 4) == 1
        assert caplog.text.count("version 2 cannot be loaded, 1 stays") == 1
        add(tmp_path, 2, "graph")
        assert await looks(models, 2) == 2
        add(tmp_path, 3, exported.MANIFEST, "graph")
        (tmp_path / "3" / "itself").symlink_to("itself")
        (tmp_path / "3" / "broken").symlink_to("nowhere")
        assert await looks(models, 2) == 3
        await models.close()

    asyncio.run(take_up())


def test_a_version_that_is_withdrawn_or_replaced_answers_no_more(tmp_path):
    add(tmp_path, 1, exported.MANIFEST, "graph")
    add(tmp_path, 2, exported.MANIFEST, "graph")

    async def withdraw():
        models = await loaded(tmp_path)
        first = models.current
        assert first.version == 2
        shutil.rmtree(tmp_path / "2")
        for _ in range(2):
            await models.reload_if_changed()
        assert models.current.version == 1
        add(tmp_path, 2, exported.MANIFEST, "graph", "other")
        for _ in range(2):
            await models.reload_if_changed()
        assert models.current.version == 2
        assert models.current is not first
        shutil.rmtree(tmp_path / "1")
        shutil.rmtree(tmp_path / "2")  # nothing is left that could answer
        for _ in range(2):
            await models.reload_if_changed()
        assert models.current.version == 2
        await models.close()

    asyncio.run(withdraw())


def test_the_watch_outlives_a_disk_that_cannot_be_read(tmp_path, caplog, monkeypatch):
    add(tmp_path, 1, exported.MANIFEST, "graph")

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    async def watch():
        models = await loaded(tmp_path)
        watching = asyncio.create_task(serve._watch(models, 0.01))
        with monkeypatch.context() as patch:
            patch.setattr(exported, "versions", refuse)
            await asyncio.sleep(0.2)
        add(tmp_path, 2, exported.MANIFEST, "graph")
        async with asyncio.timeout(9):
            while models.current.version == 1:
                await asyncio.sleep(0.01)
        watching.cancel()
        await models.close()

    asyncio.run(watch())
    assert caplog.text.count("Permission denied; what is served stays") == 1
