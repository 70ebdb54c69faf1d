"""The version of a model that answers now, and how a newer one takes over without a request being lost."""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from carbrand import exported, files
from carbrand.data.images import NormalisedImage
from carbrand.errors import CarbrandError
from carbrand.serving import rest
from carbrand.serving.batching import Admission, Batcher
from carbrand.serving.predictor import Failure, Prediction, Predictor

log = logging.getLogger(__name__)

Result = tuple[NormalisedImage | Failure, Prediction | Failure]


class Served:
    """One version, with the requests that are using it."""

    def __init__(
        self,
        predictor: Predictor,
        batcher: Batcher[NormalisedImage, Prediction | Failure],
        signatures: Mapping[str, Any],
        look: str,
    ) -> None:
        self.predictor = predictor
        self.batcher = batcher
        self.version = predictor.version or 1  # 1 for a folder that has no number
        self.signatures = signatures  # see `rest.signatures`
        self.look = look  # that its files had, see `_files_in`
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the version alive for the block."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def retire(self) -> None:
        """Waits until nobody uses the version, which nobody begins to any more."""
        await self._unused.wait()
        await self.batcher.close()


class Models:
    """The newest version in a model's folder."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        max_pixels: int,
        max_batch: int,
        max_delay_s: float,
        max_waiting: int,
        watch: Callable[[int, float], None],
    ) -> None:
        """Sets what every version is served with.

        Args:
          folder: An exported model.
          max_pixels: Of a photo.
          max_batch: Photos per pass through the network.
          max_delay_s: For which a photo waits for others, in seconds.
          max_waiting: Photos in the house.
          watch: Is told of each batch: its size, and the seconds that the network took.
        """
        self._folder = folder
        self._max_pixels = max_pixels
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._watch = watch
        self._served: Served | None = None
        self._looked_at = self._failed = ""  # what files these versions had
        self._retiring: set[asyncio.Task[None]] = set()
        self._decoding = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "decode")
        self.admission = Admission(max_waiting)

    @property
    def current(self) -> Served | None:
        """None before `load`."""
        return self._served

    async def load(self) -> None:
        """Loads the newest version, and lets it take over once it is warm.

        Raises:
          DataError: There is none.
        """
        before, self._served = self._served, await asyncio.to_thread(self._warm)
        predictor = self._served.predictor
        log.info("serving %s: %d brands", predictor.folder, len(predictor.brands))
        if before:
            task = asyncio.create_task(before.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def reload_if_changed(self) -> None:
        """Loads the newest version if it is another one than answers now, by its number or by its files.

        So one that was withdrawn gives way to the one before, and one that was replaced to what is there now. Only if
        its files did not change since the last call: it may be copied now. One that cannot be loaded is logged, and
        what answers stays until these files change.
        """
        newest, look = await asyncio.to_thread(self._newest)
        if newest is None or self._served is None or look == self._served.look:
            return
        before, self._looked_at = self._looked_at, look
        if self._looked_at != before or self._looked_at == self._failed:
            return
        current = self._served.version
        try:
            await self.load()
        except Exception as error:  # whatever is wrong with it, the one that works goes on
            self._failed = self._looked_at
            expected = isinstance(error, CarbrandError)
            log.error("version %d cannot be loaded, %d stays: %s", newest, current, error, exc_info=not expected)

    async def predict(self, served: Served, contents: Sequence[bytes]) -> list[Result]:
        """Each photo as the network gets it, and what it says of it, in order.

        Raises:
          QueueFullError: There are too many photos in the house.
        """
        with self.admission.admit(len(contents)), served.in_use():
            return await asyncio.gather(*(self._predict(served, content) for content in contents))

    async def heatmap(self, served: Served, content: bytes, brand: str) -> bytes | Failure:
        """See `Predictor.heatmap`; raises QueueFullError too."""
        with self.admission.admit(1), served.in_use():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._decoding, served.predictor.heatmap, content, brand)

    async def close(self) -> None:
        """Waits for the answers that are under way."""
        if self._served:
            await self._served.retire()
        await asyncio.gather(*self._retiring)

    async def _predict(self, served: Served, content: bytes) -> Result:
        image = await asyncio.get_running_loop().run_in_executor(self._decoding, served.predictor.normalise, content)
        return image, image if isinstance(image, Failure) else await served.batcher.submit(image)

    def _newest(self) -> tuple[int | None, str]:
        """The newest version, None for none, and what its files look like."""
        found = exported.versions(self._folder)
        return (found[-1], _files_in(self._folder / str(found[-1]))) if found else (None, "")

    def _warm(self) -> Served:
        folder = exported.find(self._folder)
        look = _files_in(folder)  # before they are read: what changes meanwhile is seen next time
        predictor = Predictor(folder, max_pixels=self._max_pixels)
        grey = np.full((256, 256, 3), 128, np.uint8)
        for size in (1, self._max_batch):
            predictor.predict([grey] * size)

        def compute(images: list[NormalisedImage]) -> list[Prediction | Failure]:
            started = time.perf_counter()
            results = predictor.predict_normalised(images)
            self._watch(len(images), time.perf_counter() - started)
            return results

        batcher = Batcher(compute, max_batch=self._max_batch, max_delay_s=self._max_delay_s)
        return Served(predictor, batcher, rest.signatures(folder), look)


def _files_in(folder: pathlib.Path) -> str:
    """Another text for other files, by their paths, sizes and times of change."""
    try:
        found = [(path, path.lstat()) for path in sorted(folder.rglob("*"))]
    except OSError as error:
        return str(error)
    return files.fingerprint([(str(path), status.st_size, status.st_mtime_ns) for path, status in found])
