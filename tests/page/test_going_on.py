"""Going on from an output in a real Chromium: it becomes the input, and the way to it stays in sight."""

from playwright.sync_api import Locator, Page, expect

from tests.page.conftest import Held
from tests.page.driving import Picture, choose, edit, wait_until_done

LEFT, RIGHT = Picture("left.png", 10), Picture("right.png", 200)


def go_on(run: Locator, name: str) -> None:
    run.get_by_role("button", name=name).click()
    expect(run.page.get_by_label("Instruction")).to_be_focused()


def steps(run: Locator) -> list[str]:
    buttons = run.get_by_role("list", name="Made from").get_by_role("button").all()
    return [button.get_attribute("title") or "" for button in buttons]


def middle(editor: Held) -> list[int]:
    """Return the grey in the middle of each picture of the last request."""
    return [int(image[32, 48, 0]) for image in editor.requests[-1].images]


def test_an_output_is_gone_on_from_three_times_and_then_again_from_the_second(page: Page, editor: Held) -> None:
    choose(page, LEFT, RIGHT)
    run = edit(page, "first", n=2)
    wait_until_done(run)
    expect(run.get_by_role("list", name="Made from")).to_have_count(0)
    go_on(run, "Edit this: right-2.png")
    # In place of both pictures.
    expect(page.get_by_role("list", name="Chosen pictures").get_by_role("listitem")).to_have_count(1)
    run = edit(page, "second")
    wait_until_done(run)
    assert (middle(editor), steps(run)) == ([55], ["right.png"])
    go_on(run, "Edit this: right-2-1.png")
    run = edit(page, "third")
    wait_until_done(run)
    assert (middle(editor), steps(run)) == ([200], ["right.png", "right-2.png"])
    go_on(run, "Edit this: right-2-1-1.png")
    run = edit(page, "fourth")
    wait_until_done(run)
    assert (middle(editor), steps(run)) == ([55], ["right.png", "right-2.png", "right-2-1.png"])
    # Its pictures can still be seen once the edits that made them are gone.
    page.get_by_role("article").nth(1).get_by_role("button", name="Remove").click()
    go_on(run, "Edit again: right-2.png")
    again = edit(page, "third, again")
    wait_until_done(again)
    assert (middle(editor), steps(again)) == ([55], ["right.png"])


def test_the_seed_of_an_output_is_taken_for_the_next_edit(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    run = edit(page, n=2)
    wait_until_done(run)
    run.get_by_role("button", name="Same seed as left-2.png").click()
    expect(page.get_by_label("Seed", exact=True)).to_be_visible()
    wait_until_done(edit(page))
    first, second = editor.requests
    assert second.seed == first.seed + 1
