"""The event queue, from the engine's threads to a reader on an event loop."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from serve_app.deployments.event_queue import EventQueue
from serve_app.events import Completed, Event, Preview, Progress

BLACK = np.zeros((1, 1, 3), np.uint8)


async def read(queue: EventQueue) -> list[Event]:
    events = []
    while (event := await queue.get()) is not None:
        events.append(event)
    return events


def test_a_slow_reader_misses_old_progress_and_no_picture():
    pictures: list[Event] = [Preview(0, 0, 0, BLACK), Preview(0, 0, 1, BLACK), Completed(0, 0, 7, BLACK)]

    async def run() -> list[Event]:
        queue = EventQueue()
        for step, event in enumerate(pictures):
            queue.put(Progress(10 * step, 30, 0))
            queue.put(Progress(10 * step + 1, 30, 0))
            queue.put(event)
        queue.close()
        # Nothing has been read so far.
        await asyncio.sleep(0)
        return await read(queue)

    events = asyncio.run(run())
    assert [event for event in events if not isinstance(event, Progress)] == pictures
    assert [event.steps_done for event in events if isinstance(event, Progress)] == [1, 11, 21]
    assert [isinstance(event, Progress) for event in events] == [True, False] * 3


def test_a_reader_that_waits_is_woken_from_another_thread():
    async def run() -> list[Event]:
        queue = EventQueue()

        def put_and_close() -> None:
            # By then the loop is idle, and sleeps until it is woken.
            time.sleep(0.2)
            queue.put(Progress(1, 2, 0))
            queue.close()

        asyncio.get_running_loop().call_later(10, woken_late.append, True)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(put_and_close)
            return await read(queue)

    woken_late: list[bool] = []
    assert asyncio.run(run()) == [Progress(1, 2, 0)]
    assert not woken_late


def test_a_queue_whose_loop_is_gone_drops_what_is_put():
    async def make() -> EventQueue:
        return EventQueue()

    queue = asyncio.run(make())
    queue.put(Progress(1, 2, 0))
    queue.close()
