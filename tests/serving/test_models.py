import asyncio
import pathlib
import types

from carbrand import exported
from carbrand.errors import DataError
from carbrand.serving.models import Models


class ToyModels(Models):
    """Whose versions are whole once they hold a file `graph`."""

    def _warm(self):
        folder = pathlib.Path(exported.find(self._folder))
        if not (folder / "graph").exists():
            raise DataError(f"{folder}: no graph")
        return types.SimpleNamespace(folder=folder, brands=("a",), version=int(folder.name))


def add(folder, version, *names):
    (folder / str(version)).mkdir(exist_ok=True)
    for name in names:
        (folder / str(version) / name).write_text("{}")


def test_a_version_that_is_copied_slowly_is_taken_up_once_it_is_whole(tmp_path, caplog):
    add(tmp_path, 1, exported.MANIFEST, "graph")

    async def looks(models, count):
        for _ in range(count):
            await models.reload_if_newer()
        return models.current.predictor.version

    async def serve():
        models = ToyModels(tmp_path, max_pixels=1, max_batch=1, max_delay_s=0, max_waiting=1, watch=lambda *_: None)
        await models.load()
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

    asyncio.run(serve())
