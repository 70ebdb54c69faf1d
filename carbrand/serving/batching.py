"""Requests that come at the same time share one pass through the network: a bounded queue, and a bounded wait."""

import asyncio
import collections
import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """There is as much in the house as may be."""


class Admission:
    """How much may be in the house at a time: photos, or bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    @contextlib.contextmanager
    def admit(self, number: int) -> Iterator[None]:
        """Counts `number` for the block.

        Raises:
          QueueFullError: There is no room for it. A number above the limit gets in when alone.
        """
        if self.count and self.count + number > self._limit:
            raise QueueFullError
        self.count += number
        try:
            yield
        finally:
            self.count -= number


class Batcher(Generic[Item, Result]):
    """Calls a function of a batch in a thread of its own, one batch after another; belongs to one event loop."""

    def __init__(
        self, function: Callable[[list[Item]], Sequence[Result]], *, max_batch: int = 32, max_delay_s: float = 0.005
    ) -> None:
        """Makes a batcher.

        Args:
          function: Items -> as many results, in order.
          max_batch: Items in a batch.
          max_delay_s: For which the first item of a batch waits for others, in seconds.
        """
        self._function = function
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._waiting: collections.deque[tuple[Item, asyncio.Future[Result]]] = collections.deque()
        self._changed = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "batches")
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def submit(self, item: Item) -> Result:
        """The result for one item. An item whose caller gives up before its batch begins is not computed."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._changed.set()
        return await future

    async def close(self) -> None:
        """Waits until all that was submitted is computed."""
        self._closing = True
        self._changed.set()
        if self._task:
            await self._task
        self._thread.shutdown()

    async def _work(self) -> None:
        while await self._has_some():
            await self._fill()
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            batch = [(item, future) for item, future in batch if not future.done()]
            if batch:
                await self._compute(batch)

    async def _has_some(self) -> bool:
        """Waits for an item; False once none will come."""
        while not self._waiting and not self._closing:
            self._changed.clear()
            await self._changed.wait()
        return bool(self._waiting)

    async def _fill(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_delay_s):
                while len(self._waiting) < self._max_batch and not self._closing:
                    self._changed.clear()
                    await self._changed.wait()

    async def _compute(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        items = [item for item, _ in batch]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._function, items)
        except Exception as error:  # it belongs to those who wait
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
