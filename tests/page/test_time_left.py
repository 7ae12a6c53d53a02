"""The time that an edit still takes, from the rate of its steps."""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from serve_app.api.app import create_app
from serve_app.events import Event, Progress
from serve_app.request import EditRequest
from serve_app.settings import AppSettings
from tests.editors import Inverter
from tests.http_server import listening
from tests.page.driving import Picture, choose, edit, wait_until_done

LEFT = """async seen => {
    const {Pace} = await import("./static/pace.js")
    const pace = new Pace()
    return seen.map(([ms, steps_done, place]) => pace.left({steps_done, steps: 20, place}, ms))
}"""
"""Returns what the page knows after each event: [its ms, the steps done, the place in the queue]."""


@pytest.mark.parametrize(
    ("seen", "left"),
    [
        # 5 s of encoding before the first step do not count.
        ([(0, 0, 0), (5000, 1, 0), (6000, 3, 0), (7000, 5, 0)], [None, None, None, 7.5]),
        # Nothing is said after less than a second.
        ([(100, 1, 0), (200, 2, 0), (300, 3, 0)], [None, None, None]),
        # The queue has no rate of its own.
        ([(0, 0, 3), (9000, 0, 1), (9500, 1, 0), (10_500, 2, 0), (11_500, 3, 0)], [None, None, None, None, 17]),
        # An edit that begins again on another replica has the rate of that one.
        (
            [(0, 4, 0), (1000, 5, 0), (2000, 6, 0), (3000, 1, 0), (5000, 2, 0), (7000, 3, 0)],
            [None, None, 14, None, None, 34],
        ),
        # What was long ago does not count.
        (
            [(0, 1, 0), (1000, 2, 0), (20_000, 3, 0), (60_000, 4, 0), (70_000, 5, 0)],
            [None, None, 170, 472, 375],
        ),
    ],
)
def test_the_time_left_follows_from_the_steps_of_the_last_while(page: Page, seen: Any, left: Any) -> None:
    assert page.evaluate(LEFT, seen) == pytest.approx(left)


class Stepper(Inverter):
    """An editor that takes ten steps of 0.4 s."""

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        for done in range(1, 11):
            yield Progress(done, 10, place=0)
            await asyncio.sleep(0.4)
        async for event in super().edit_stream(request):
            yield event


def test_the_page_says_how_long_an_edit_still_takes(context: BrowserContext) -> None:
    with listening(create_app(Stepper(), AppSettings())) as url:
        page = context.new_page()
        page.goto(url)
        choose(page, Picture("left.png", 10))
        run = edit(page)
        expect(run.locator(".state")).to_have_text(re.compile(r"Step \d of 10 · [\d.]+ s · about [1-4] s left"))
        wait_until_done(run)
        page.close()
