"""The page's languages in a real Chromium: by the browser's, by the reader's choice, and complete."""

import re
import time
from collections.abc import Iterator
from typing import cast

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from serve_app.api.app import create_app
from serve_app.errors import OutOfMemory
from serve_app.settings import AppSettings
from tests.http_server import listening
from tests.page.conftest import Held
from tests.page.driving import Picture, choose, edit, wait_until_done

LEFT, SHIRT = Picture("左.png", 10), Picture("衬衫.png", 60)
# Names that are the same in both languages: of keys, of programs, of the model, of files, and what it calls references.
NAMES = re.compile(r"Ctrl\+Enter|API|curl|Python|builtin:tiny|\.png|Picture\s\d|English|PNG|JPEG|WebP")
SEEN = """() => {
    const attributes = ["aria-label", "aria-valuetext", "title", "placeholder", "alt", "value"]
    const texts = [document.title]
    for (const node of document.querySelectorAll("*:not(script, style, template, noscript)")) {
        if (!node.checkVisibility() && !node.matches("option")) continue
        for (const name of attributes) if (!(name === "value" && node.matches("option, input"))) {
            texts.push(node.getAttribute(name) ?? "")
        }
        texts.push(...[...node.childNodes].filter(child => child.nodeType === Node.TEXT_NODE).map(child => child.data))
        texts.push(node.validity?.customError ? node.validationMessage : "")
    }
    return texts
}"""


def texts(page: Page) -> list[str]:
    """Return all that the page says now: what is shown, and what screen readers read."""
    return [text.strip() for text in cast("list[str]", page.evaluate(SEEN)) if text.strip()]


def english(page: Page) -> list[str]:
    """Return what is said in English, beside names."""
    return [text for text in texts(page) if re.search("[a-z]{2}", NAMES.sub("", text), re.IGNORECASE)]


@pytest.fixture
def chinese(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 860}, locale="zh-CN")
    page = context.new_page()
    page.goto(url)
    page.get_by_text("builtin:tiny").wait_for()
    yield page
    context.close()


def choose_in_chinese(page: Page) -> None:
    for label, picture in (("图像", LEFT), ("参考图", SHIRT)):
        page.get_by_label(label, exact=True).set_input_files([picture.payload()])


def edit_in_chinese(page: Page, prompt: str = "反色") -> None:
    page.get_by_label("指令").fill(prompt)
    page.get_by_label("每张图像的变体数").fill("2")
    page.get_by_role("button", name="开始编辑").click()


def test_a_chinese_browser_has_a_page_without_english(chinese: Page, editor: Held) -> None:
    page = chinese
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(page).to_have_title("图像编辑")
    page.get_by_text("更多选项").click()
    assert english(page) == []
    choose_in_chinese(page)
    page.get_by_label("尺寸").select_option("自定义：宽 × 高")
    page.get_by_label("宽度").fill("900")
    page.get_by_label("高度").fill("100")
    assert english(page) == []
    page.get_by_label("尺寸").select_option("与图像同比例")
    page.get_by_role("button", name="左.png 的掩码").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert english(page) == []
    page.get_by_role("button", name="反选").click()
    page.get_by_role("button", name="完成").click()
    expect(page.get_by_role("button", name="修改 左.png 的掩码")).to_be_visible()
    for label, words in (("种子", "7"), ("步数", "4"), ("引导强度", "3"), ("反向提示词", "雾")):
        page.get_by_label(label, exact=True).fill(words)
    editor.gate.clear()
    edit_in_chinese(page)
    expect(page.get_by_text("预览 3")).to_be_visible()
    assert english(page) == []
    editor.gate.set()
    expect(page.locator(".state")).to_contain_text("已完成，用时")
    assert english(page) == []
    page.get_by_role("button", name="与原图对比").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert english(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="复制 curl 命令").click()
    expect(page.get_by_role("button", name="已复制")).to_be_visible()
    page.get_by_role("article").get_by_role("button", name="移除").click()
    expect(page.get_by_text("已移除：反色")).to_be_visible()
    assert english(page) == []


def test_in_chinese_only_the_servers_own_message_of_what_goes_wrong_is_english(chinese: Page, editor: Held) -> None:
    editor.error = OutOfMemory("CUDA out of memory")
    choose_in_chinese(chinese)
    edit_in_chinese(chinese)
    expect(chinese.get_by_role("article").get_by_text("失败")).to_be_visible()
    assert english(chinese) == ["Image generation failed: CUDA out of memory."]
    problem = chinese.get_by_role("article").get_by_role("alert")
    # Screen readers say it in the voice of its language.
    expect(problem).to_have_attribute("lang", "en")
    chinese.context.set_offline(True)
    chinese.get_by_role("button", name="重试").click()
    expect(problem).to_have_text("没有响应：无法连接服务器，或服务器关闭了连接。")
    expect(problem).not_to_have_attribute("lang", "en")
    assert english(chinese) == []


@pytest.mark.parametrize(
    ("languages", "tag"),
    [
        (["zh-TW", "en-US"], "zh-Hans"),
        (["zh-Hant-HK"], "zh-Hans"),
        (["de-DE", "zh-CN", "en"], "zh-Hans"),
        (["de-DE", "en-GB", "zh"], "en"),
        (["de-DE"], "en"),
    ],
)
def test_the_first_language_of_the_browser_that_the_page_has_is_taken(
    context: BrowserContext, url: str, languages: list[str], tag: str
) -> None:
    page = context.new_page()
    page.add_init_script(f"Object.defineProperty(navigator, 'languages', {{value: {languages}}})")
    page.goto(url)
    expect(page.locator("html")).to_have_attribute("lang", tag)


def test_a_change_of_the_language_reaches_everything_and_is_remembered(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    page.get_by_label("References", exact=True).set_input_files([SHIRT.payload()])
    page.get_by_text("More", exact=True).click()
    wait_until_done(edit(page, "先", n=2))
    editor.error = OutOfMemory("CUDA out of memory")
    expect(edit(page, "坏").get_by_role("alert")).to_be_visible()
    editor.error = None
    wait_until_done(edit(page, "去"))
    editor.gate.clear()
    expect(edit(page, "反色").get_by_text("preview 3")).to_be_visible()
    page.get_by_role("button", name="Remove", exact=True).nth(1).click()
    in_english = texts(page)
    switch = page.get_by_role("combobox", name="Language")
    expect(switch.locator("option")).to_have_text(["English", "简体中文"])
    switch.select_option("简体中文")
    # What was announced is not announced again.
    page.locator("#announcements").evaluate("at => at.textContent = ''")
    assert english(page) == ["Image generation failed: CUDA out of memory."]
    page.get_by_role("button", name="撤销").click()
    expect(page.get_by_role("article", name="编辑：去")).to_contain_text("已完成，用时")
    page.get_by_role("article", name="编辑：去").get_by_role("button", name="移除").click()
    page.get_by_role("combobox", name="语言").select_option("English")
    page.locator("#announcements").evaluate("at => at.textContent = ''")
    assert [text for text in texts(page) if text not in in_english] == []
    editor.gate.set()
    page.get_by_role("combobox", name="Language").select_option("简体中文")
    expect(page.get_by_role("article", name="编辑：反色")).to_contain_text("已完成，用时")
    page.reload()
    expect(page.get_by_role("button", name="开始编辑")).to_be_visible()
    expect(page.get_by_role("combobox", name="语言")).to_have_value("zh")


def test_nothing_is_shown_before_its_language_is_there(context: BrowserContext, url: str) -> None:
    def delay(route: Route) -> None:
        time.sleep(0.5)
        route.continue_()

    page = context.new_page()
    page.route("**/texts/zh.js", delay)
    page.goto(url)
    page.get_by_text("builtin:tiny").wait_for()
    script = """() => {
        const texts = performance.getEntriesByType("resource").find(({name}) => name.endsWith("texts/zh.js"))
        const [painted] = performance.getEntriesByType("paint")
        return [texts.responseEnd, painted.startTime]
    }"""
    had, painted = page.evaluate(script)
    assert 500 < had < painted


def test_a_browser_that_keeps_nothing_has_the_page_in_its_language_and_may_change_it(
    context: BrowserContext, editor: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "secret")
    with listening(create_app(editor, AppSettings())) as address:
        page = context.new_page()
        for kind in ("localStorage", "sessionStorage"):
            refuse = "get() { throw new DOMException('', 'SecurityError') }"
            page.add_init_script(f"Object.defineProperty(window, '{kind}', {{{refuse}}})")
        page.goto(address)
        page.get_by_role("combobox", name="Language").select_option("简体中文")
        page.get_by_label("API 密钥").fill("secret")
        choose_in_chinese(page)
        edit_in_chinese(page)
        expect(page.locator(".state")).to_contain_text("已完成，用时")
        page.close()
