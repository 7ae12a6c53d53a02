"""A user's actions on the page, and what is visible there."""

import io
from dataclasses import dataclass
from typing import cast

import PIL.Image
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, expect

from tests.pictures import png


@dataclass(frozen=True)
class Picture:
    """Return a picture of one grey, as a PNG or TIFF file."""

    name: str
    value: int

    def payload(self) -> FilePayload:
        content = png(self.value, 96, 64)
        if self.name.endswith(".tif"):
            file = io.BytesIO()
            PIL.Image.open(io.BytesIO(content)).save(file, "TIFF")
            return FilePayload(name=self.name, mimeType="image/tiff", buffer=file.getvalue())
        return FilePayload(name=self.name, mimeType="image/png", buffer=content)


def wait_until_ready(page: Page) -> None:
    """Wait until the page listens to its form: earlier actions have no effect."""
    expect(page.locator("form#form:not([inert])")).to_be_visible(timeout=60_000)


def choose(page: Page, *pictures: Picture) -> None:
    wait_until_ready(page)
    page.get_by_label("Pictures", exact=True).set_input_files([picture.payload() for picture in pictures])


def edit(page: Page, prompt: str = "invert", n: int = 1) -> Locator:
    """Fill in the form and submit it; return the article of the edit."""
    page.get_by_label("Instruction").fill(prompt)
    page.get_by_label("Variants of each picture").fill(str(n))
    page.get_by_role("button", name="Edit", exact=True).click()
    return page.get_by_role("article").first


def wait_until_done(run: Locator) -> None:
    expect(run.locator(".state")).to_contain_text("Done in")


def drawn(pictures: Locator) -> list[list[int]]:
    """Return the red of the first pixel and of the middle of each <img>."""
    expect(pictures.last).to_have_js_property("complete", True)
    script = """images => Promise.all(images.map(async image => {
        await image.decode()
        const canvas = document.createElement("canvas")
        Object.assign(canvas, {width: image.naturalWidth, height: image.naturalHeight})
        const pen = canvas.getContext("2d")
        pen.drawImage(image, 0, 0)
        const at = (x, y) => pen.getImageData(x, y, 1, 1).data[0]
        return [at(0, 0), at(canvas.width / 2, canvas.height / 2)]
    }))"""
    return cast("list[list[int]]", pictures.evaluate_all(script))


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    return cast(int, page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def small_targets(page: Page) -> list[str]:
    """Return what can be clicked and is less than 24 px wide or high, the least that WCAG 2.2 allows."""
    script = """() => [...document.querySelectorAll("a, button, input, select, textarea, summary")]
        .filter(at => at.checkVisibility({visibilityProperty: true}) && !at.matches(".skip"))
        .filter(at => Math.min(at.getBoundingClientRect().width, at.getBoundingClientRect().height) < 24)
        .map(at => at.outerHTML)"""
    return cast("list[str]", page.evaluate(script))


def copied(page: Page) -> str:
    return cast(str, page.evaluate("navigator.clipboard.readText()"))


def opened(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    wait_until_ready(page)
    return page


def reload(page: Page) -> None:
    page.reload()
    wait_until_ready(page)


def run_of(page: Page, prompt: str) -> Locator:
    return page.get_by_role("article", name=f"Edit: {prompt}", exact=True)


def middles(run: Locator) -> list[int]:
    return [value for _, value in drawn(run.locator(".output img"))]
