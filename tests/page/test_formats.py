"""The file format of outputs and its quality, in a real Chromium."""

import PIL.Image
import pytest
from playwright.sync_api import Page, expect

from tests.page.driving import Picture, choose, edit, wait_until_done

LEFT = Picture("left.png", 10)


@pytest.mark.parametrize("kind", ["JPEG", "WebP"])
def test_outputs_have_the_format_and_the_quality_that_were_chosen(page: Page, kind: str) -> None:
    choose(page, LEFT)
    page.get_by_text("More", exact=True).click()
    file_format, quality = page.get_by_label("File format"), page.get_by_label("Quality")
    expect(quality).to_be_hidden()
    file_format.select_option(kind)
    sizes = []
    for value in ("90", "5"):
        quality.fill(value)
        run = edit(page)
        wait_until_done(run)
        with page.expect_download() as download:
            run.get_by_role("link", name="Download").first.click()
        path = download.value.path()
        assert download.value.suggested_filename.endswith(f".{kind.lower()}")
        with PIL.Image.open(path) as output:
            assert output.format == kind.upper()
        sizes.append(path.stat().st_size)
    assert sizes[0] > sizes[1]
    page.reload()
    expect(file_format).to_have_value(kind.lower())
    expect(quality).to_have_value("5")
    # Of no use for PNG, and refused by the server.
    file_format.select_option("PNG")
    expect(quality).to_be_hidden()
    wait_until_done(edit(page))
