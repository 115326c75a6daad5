"""Coroutines run whether or not the caller has an event loop, and are ended in order."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from sharevl_lite import event_loop
from sharevl_lite.event_loop import LoopThread


async def answer(value):
    await asyncio.sleep(0)
    return value


async def fail():
    raise ValueError("no")


def test_in_a_loop_and_without_one():
    async def as_in_a_notebook():
        return event_loop.run(answer(1))

    with ThreadPoolExecutor(1) as thread:  # other tests may leave a loop running in this one
        assert thread.submit(event_loop.run, answer(2)).result() == 2
        assert thread.submit(asyncio.run, as_in_a_notebook()).result() == 1


def test_exceptions_pass_through():
    with pytest.raises(ValueError, match="no"):
        event_loop.run(fail())


def test_what_still_runs_is_ended_before_the_loop():
    ended = []

    async def forever():
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def start():
        start.task = asyncio.create_task(forever())
        await asyncio.sleep(0)

    with LoopThread("test") as loop:
        loop.run(start())
    assert ended == [True]
