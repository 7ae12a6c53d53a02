"""The page of the real application, behind Serve's proxy and a route prefix."""

import base64
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, FilePayload, expect
from ray import serve

from serve_app.settings import AppSettings, ModelSettings
from tests.cluster.client import png
from tests.cluster.conftest import SETTINGS, Served
from tests.page.driving import wait_until_ready
from tests.scenes import scene

PATIENCE_MS = 60_000


@pytest.fixture
def prefixed(run: Callable[[AppSettings, str, str], Served], random_model_settings: ModelSettings) -> Iterator[Served]:
    yield run(SETTINGS.model_copy(update={"model": random_model_settings}), "prefixed", "/prefixed")
    serve.delete("prefixed")


def test_the_page_edits_under_a_route_prefix(browser: Browser, prefixed: Served):
    page = browser.new_page()
    page.goto(prefixed.client.base)
    assert page.url == f"{prefixed.client.base}/"
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
    # The same edit, asked for in one piece.
    response = prefixed.client.edit([scene(1)], prompt="make the sky blue", seed=3, num_inference_steps=4)
    assert download.value.path().read_bytes() == base64.b64decode(response.json()["data"][0]["b64_json"])
    page.close()
