"""The page of the real application, behind Serve's proxy and a route prefix."""

import base64

from playwright.sync_api import Browser, FilePayload, expect

from tests.cluster.client import png
from tests.cluster.conftest import Served
from tests.page.driving import wait_until_ready
from tests.scenes import scene

PATIENCE_MS = 60_000


def test_the_page_edits_under_a_route_prefix(browser: Browser, mortal: Served):
    page = browser.new_page()
    page.goto(mortal.client.base)
    assert page.url == f"{mortal.client.base}/"
    wait_until_ready(page)
    picture = FilePayload(name="photo.png", mimeType="image/png", buffer=png(scene(1)))
    page.get_by_label("Pictures", exact=True).set_input_files(picture)
    page.get_by_label("Instruction").fill("make the sky blue")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Steps").fill("4")
    page.get_by_role("button", name="Edit", exact=True).click()
    run = page.get_by_role("article")
    expect(run.locator(".state")).to_contain_text("Done in", timeout=PATIENCE_MS)
    with page.expect_download() as download:
        run.get_by_role("link", name="Download photo-1.png").click()
    # The same edit in one request without a stream.
    response = mortal.client.edit([scene(1)], prompt="make the sky blue", seed=3, num_inference_steps=4)
    assert download.value.path().read_bytes() == base64.b64decode(response.json()["data"][0]["b64_json"])
    page.close()
