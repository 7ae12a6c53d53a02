"""A user's strokes in the dialog of a mask."""

from typing import Any

from playwright.sync_api import Locator, Page, expect

Share = tuple[float, float]
"""A place of a picture, as shares of its width and height."""


def open_mask(page: Page, name: str) -> Locator:
    page.get_by_role("button", name=f"Mask of {name}").click()
    dialog = page.get_by_role("dialog", name=f"Mask of {name}")
    expect(dialog).to_be_visible()
    return dialog


def paint(page: Page, start: Share, end: Share) -> None:
    """Draw a line by mouse."""
    (x, y), (to_x, to_y) = _point(page, start), _point(page, end)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=8)
    page.mouse.up()


def paint_by_touch(page: Page, start: Share, end: Share) -> None:
    """Draw a line by one finger."""
    (x, y), (to_x, to_y) = _point(page, start), _point(page, end)
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: dict[str, Any]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    touch("touchStart", {"x": x, "y": y})
    for k in range(1, 9):
        touch("touchMove", {"x": x + (to_x - x) * k / 8, "y": y + (to_y - y) * k / 8})
    touch("touchEnd")
    session.detach()


def finish(page: Page) -> None:
    page.get_by_role("dialog").get_by_role("button", name="Done").click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def _point(page: Page, share: Share) -> tuple[float, float]:
    box = page.get_by_role("dialog").locator("canvas").bounding_box()
    assert box is not None
    return box["x"] + share[0] * box["width"], box["y"] + share[1] * box["height"]
