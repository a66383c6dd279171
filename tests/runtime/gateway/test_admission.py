"""The queue's order, its bound, and places that are given back."""

from __future__ import annotations

import asyncio

import pytest
from optserve.runtime.gateway.admission import Admission
from optserve.runtime.gateway.api_errors import ApiError


def order(requests, *, most=1):
    """The names in the order in which they get their places."""
    served = []

    async def one(admission, name, user, priority):
        async with admission.place(user, priority):
            served.append(name)
            await asyncio.sleep(0)

    async def go():
        admission = Admission(most=most, most_waiting=100)
        async with admission.place("holder"):
            tasks = [asyncio.create_task(one(admission, *r)) for r in requests]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert admission.running == admission.waiting_of("") == 0

    asyncio.run(go())
    return served


def test_first_come_first_served_among_equals():
    assert order([(i, "a", 0) for i in range(5)]) == list(range(5))


def test_the_lowest_priority_number_goes_first():
    requests = [("late", "a", 5), ("soon", "a", -5), ("usual", "a", 0)]
    assert order(requests) == ["soon", "usual", "late"]


def test_a_user_with_many_delays_another_by_little():
    async def go():
        admission, served = Admission(most=2, most_waiting=100), []
        free = asyncio.Event()

        async def one(user):
            async with admission.place(user):
                served.append(user)
                await free.wait()

        tasks = [asyncio.create_task(one("many")) for _ in range(50)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one("single")))
        await asyncio.sleep(0)
        free.set()
        await asyncio.gather(*tasks)
        return served.index("single")

    assert asyncio.run(go()) <= 3


def test_a_full_queue_refuses():
    async def go():
        admission = Admission(most=1, most_waiting=1)
        async with admission.place("a"):
            waiting = asyncio.create_task(_hold(admission))
            await asyncio.sleep(0)
            with pytest.raises(ApiError) as refused:
                await _hold(admission)
            assert refused.value.status == 429
        await waiting

    asyncio.run(go())


def test_who_waits_too_long_or_is_cancelled_leaves_the_queue():
    async def go():
        admission = Admission(most=1, most_waiting=10)
        async with admission.place("a"):
            with pytest.raises(ApiError, match="no place came free"):
                await _hold(admission, seconds=0.01)
            task = asyncio.create_task(_hold(admission))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert admission.waiting_of("") == 0
        assert admission.running == 0

    asyncio.run(go())


def test_a_turn_that_comes_with_the_cancellation_is_passed_on():
    async def go():
        admission = Admission(most=1, most_waiting=10)
        async with admission.place("a"):
            first = asyncio.create_task(_hold(admission))
            second = asyncio.create_task(_hold(admission))
            await asyncio.sleep(0)
        first.cancel()  # its turn has come, it has not run yet
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.wait_for(second, 5)
        assert admission.running == admission.waiting_of("") == 0

    asyncio.run(go())


def test_each_model_has_its_own_count():
    async def go():
        admission = Admission(most=2, most_waiting=10)
        counts = []

        def count():
            models = "left", "right"
            running = [admission.running_of(model) for model in models]
            counts.append((running, [admission.waiting_of(model) for model in models]))

        async with admission.place("a", model="left"):
            async with admission.place("a", model="right"):
                waiting = asyncio.create_task(_hold(admission, model="right"))
                await asyncio.sleep(0)
                count()
            count()  # its turn has come
            await waiting
            count()
        count()
        return counts

    assert asyncio.run(go()) == [
        ([1, 1], [0, 1]),
        ([1, 1], [0, 0]),
        ([1, 0], [0, 0]),
        ([0, 0], [0, 0]),
    ]


async def _hold(admission, seconds=None, *, model=""):
    async with admission.place("b", 0, seconds, model=model):
        pass
