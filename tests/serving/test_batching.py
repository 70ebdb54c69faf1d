import asyncio
import threading

import pytest

from carbrand.serving.batching import Admission, Batcher, QueueFullError


def squares(items):
    return [item**2 for item in items]


def test_items_of_the_same_time_share_a_batch():
    sizes = []

    def compute(items):
        sizes.append(len(items))
        return squares(items)

    async def ask():
        batcher = Batcher(compute, max_batch=4, max_delay_s=0.05)
        results = await asyncio.gather(*(batcher.submit(number) for number in range(10)))
        await batcher.close()
        return results

    assert asyncio.run(ask()) == [number**2 for number in range(10)]
    assert sizes == [4, 4, 2]


def test_a_lonely_item_waits_no_longer_than_the_delay():
    async def ask():
        batcher = Batcher(squares, max_batch=100, max_delay_s=0.05)
        async with asyncio.timeout(5):
            return await batcher.submit(3)

    assert asyncio.run(ask()) == 9


def test_an_error_reaches_those_of_its_batch_only():
    def compute(items):
        if 1 in items:
            raise ValueError("one")
        return squares(items)

    async def ask():
        batcher = Batcher(compute, max_batch=2, max_delay_s=0.01)
        return await asyncio.gather(*map(batcher.submit, range(4)), return_exceptions=True)

    first, second, third, fourth = asyncio.run(ask())
    assert str(first) == str(second) == "one"
    assert (third, fourth) == (4, 9)


def test_who_gave_up_before_is_not_computed():
    computed, started, go_on = [], threading.Event(), threading.Event()

    def compute(items):
        started.set()
        go_on.wait(5)
        computed.extend(items)
        return squares(items)

    async def ask():
        batcher = Batcher(compute, max_batch=1, max_delay_s=0)
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.to_thread(started.wait, 5)
        second, third = asyncio.create_task(batcher.submit(2)), asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0.01)
        second.cancel()
        go_on.set()
        return await first, await third

    assert asyncio.run(ask()) == (1, 9)
    assert computed == [1, 3]


def test_closing_waits_for_what_was_submitted():
    async def ask():
        batcher = Batcher(squares, max_batch=2, max_delay_s=0)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(5)]
        await asyncio.sleep(0)
        await batcher.close()
        assert all(task.done() for task in tasks) or await asyncio.gather(*tasks)
        return [task.result() for task in tasks]

    assert asyncio.run(ask()) == [0, 1, 4, 9, 16]


def test_admission_is_bounded_but_never_for_ever():
    house = Admission(10)
    with house.admit(8):
        with pytest.raises(QueueFullError), house.admit(3):
            pass
        with house.admit(2):
            assert house.count == 10
    assert house.count == 0
    with house.admit(11):
        assert house.count == 11
