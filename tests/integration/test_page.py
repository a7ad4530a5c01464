"""The page in a real browser, before a real service: what a person sees, types and presses."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from running_service import Service, running_service

from genret.client import RequestError
from genret.runs import RunStore

pytest.importorskip("playwright", reason="playwright is not installed: pip install genret[test]")

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
QUERY = "what is near the model7x"
EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script>{{7*7}}'
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def service(small_run: RunStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(small_run, tmp_path_factory.mktemp("service") / "log") as service:
        yield service


@pytest.fixture
def hostile_passage(service: Service) -> Iterator[str]:
    """The id of a passage whose every field is HTML."""
    added = service.admin.add_document("<b>evil</b>", f"hostile {EVIL}", title=EVIL, metadata={"topic": "<i>river</i>"})
    yield from added.passages
    service.admin.remove_document(added.doc_id)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = own if own.exists() else next(filter(None, map(shutil.which, BROWSERS)), None)
        if found is None:
            pytest.skip("no Chromium is installed: apt install chromium, or playwright install chromium")
        # Root may not start it with its sandbox; nothing but our own page is opened.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, service: Service) -> Iterator[Callable[..., Page]]:
    """Opens the page with a query string; afterwards nothing may have failed or come from elsewhere."""
    pages: list[Page] = []
    complaints: list[str] = []

    def open_it(search: str = "", **options: Any) -> Page:
        page = browser.new_context(**{"viewport": DESKTOP, **options}).new_page()
        pages.append(page)
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: complaints.append(request.url) if is_elsewhere(request.url) else None)
        page.goto(f"{service.url}/{search}")
        expect(page.locator("#retrievers .pill")).not_to_have_count(0, timeout=30_000)
        return page

    def is_elsewhere(url: str) -> bool:
        return not url.startswith(f"{service.url}/")

    yield open_it
    for page in pages:
        page.context.close()
    # A request that is refused, or has no network, is told in the console too.
    assert [line for line in complaints if "422 (" not in line and "ERR_INTERNET_DISCONNECTED" not in line] == []


def answered(page: Page) -> Locator:
    """The columns, once every retriever has answered."""
    expect(page.locator(".column")).not_to_have_count(0, timeout=30_000)
    expect(page.locator(".column[aria-busy]")).to_have_count(0, timeout=30_000)
    return page.locator(".column")


def ids(page: Page, retriever: str) -> list[str]:
    answered(page)
    items = page.locator(f'.column[data-retriever="{retriever}"] .hit')
    return items.evaluate_all("items => items.map((item) => item.dataset.passage)")


def state(page: Page) -> dict[str, list[str]]:
    # Not `page.url`, which hears of a new state later than the page itself.
    return parse_qs(page.evaluate("location.search.slice(1)"))


def test_a_query_shows_what_every_retriever_found(open_page: Callable[..., Page], service: Service) -> None:
    page = open_page()
    expect(page.locator("#notice")).to_contain_text("see who finds what")
    page.keyboard.type(QUERY)  # the box has the focus
    page.keyboard.press("Enter")
    columns = answered(page)
    names = [entry.name for entry in service.admin.retrievers()]
    assert columns.evaluate_all("all => all.map((one) => one.dataset.retriever)") == names
    for name in names:
        assert ids(page, name) == [hit.passage_id for hit in service.admin.retrieve(QUERY, retriever=name).hits]
    first = page.locator('[data-retriever="sft"] .hit').first
    hit = service.admin.retrieve(QUERY, retriever="sft", explain=True).hits[0]
    expect(first.locator("h3")).to_have_text(hit.title)
    assert hit.tokens is not None
    assert first.locator(".token").count() == len(hit.tokens)
    assert page.locator('[data-retriever="bm25"] .token').count() == 0
    expect(page.locator('[data-retriever="bm25"] mark').first).to_have_text("model7x")
    for name in names:
        header = page.locator(f'[data-retriever="{name}"] header')
        expect(header.locator(".latency")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
        exact = service.admin.retrieve(QUERY, retriever=name).exact
        expect(header.locator(".badge")).to_have_text("exact" if exact else "inexact")
    expect(page.locator("#status")).to_contain_text("different passages")
    expect(page.locator("#status")).to_contain_text("bm25 found")
    expect(page.locator("#legend")).to_be_visible()
    assert page.title() == f"{QUERY} · genret"


def test_a_link_holds_the_state(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.fill("#query", QUERY)
    page.keyboard.press("Enter")
    answered(page)
    page.select_option("#k", "3")
    answered(page)
    page.click('.pill:has-text("fusion")')
    page.click("#filters-button")
    page.check('.choice:has-text("train") input')
    page.fill('[data-field="year"][data-bound="from"]', "2003")
    page.keyboard.press("Tab")
    answered(page)
    assert state(page) == {
        "q": [QUERY], "k": ["3"], "r": ["sft,bm25"], "in.topic": ["train"], "from.year": ["2003"],
    }  # fmt: skip
    seen = {name: ids(page, name) for name in ("sft", "bm25")}
    assert all(1 <= len(found) <= 3 for found in seen.values())
    other = open_page(page.evaluate("location.search"))
    assert {name: ids(other, name) for name in seen} == seen
    assert other.locator(".column").count() == 2
    expect(other.locator("#applied")).to_contain_text("from 2003")
    page.go_back()
    expect(page.locator("#applied .chip")).to_have_count(1)
    page.go_back()
    expect(page.locator("#applied .chip")).to_have_count(0)
    page.go_back()
    expect(page.locator(".column")).to_have_count(3)
    page.go_forward()
    expect(page.locator(".column")).to_have_count(2)


def test_filters_hold(open_page: Callable[..., Page], service: Service) -> None:
    page = open_page("?q=near&in.topic=oven&from.date=2001-01-01&to.date=2020-01-02")
    found = ids(page, "bm25")
    assert found
    for passage_id in found:
        metadata = service.admin.passage(passage_id).metadata
        assert metadata["topic"] == "oven"
        assert "2001-01-01" <= metadata["date"] <= "2020-01-02"
    page.click('.chip:has-text("topic")')
    answered(page)
    assert "in.topic" not in state(page)
    page.goto(f"{service.url}/?q=near&from.year=3000")
    expect(answered(page).first).to_contain_text("No passage that passes the filters")
    page.locator(".empty button").first.click()
    expect(answered(page).first.locator(".hit")).not_to_have_count(0)


def test_text_stays_text(open_page: Callable[..., Page], hostile_passage: str) -> None:
    page = open_page("?q=hostile+%3Cimg+src%3Dx+onerror%3Dalert(1)%3E&r=bm25&in.topic=%3Ci%3Eriver%3C/i%3E")
    assert ids(page, "bm25") == [hostile_passage]
    item = page.locator(".hit").first
    expect(item.locator("h3")).to_have_text(EVIL)
    expect(item.locator(".text.full")).to_have_text(f"hostile {EVIL}")
    expect(page.locator("#applied")).to_contain_text("<i>river</i>")
    item.locator(".open").click()
    expect(page.locator("#passage")).to_contain_text(f"hostile {EVIL}")
    assert page.locator("main img, main script, main i, main b, dialog img, dialog script, form i").count() == 0
    assert page.title().startswith("hostile")


def test_the_keyboard_is_enough(open_page: Callable[..., Page]) -> None:
    page = open_page(f"?q={QUERY.replace(' ', '+')}")
    answered(page)

    def place() -> list[str]:
        return page.evaluate(
            "[document.activeElement.closest('.column')?.dataset.retriever, document.activeElement.dataset.rank]"
        )

    page.keyboard.press("ArrowDown")
    assert place() == ["sft", "1"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert place() == ["bm25", "2"]
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert place() == ["sft", "1"]
    focused = page.locator(".hit:focus")
    outline = focused.evaluate("item => getComputedStyle(item, '::before').boxShadow")
    assert outline != "none", "the focus is to be seen"
    page.keyboard.press("Enter")
    expect(focused.locator(".text.full")).to_be_visible()
    page.keyboard.press("Enter")
    expect(focused.locator(".text.full")).to_be_hidden()
    page.keyboard.press("o")
    expect(page.locator("#passage")).to_be_visible()
    assert state(page)["passage"] == [page.evaluate("document.querySelector('.hit').dataset.passage")]
    page.keyboard.press("Escape")
    expect(page.locator("#passage")).to_be_hidden()
    # A dialog tells that it was closed in a task of its own, after it is gone from sight.
    page.wait_for_url(lambda url: "passage=" not in url)
    assert place() == ["sft", "1"]
    page.keyboard.press("t")
    answered(page)
    expect(page.locator(".token:visible")).to_have_count(0)
    page.keyboard.press("f")
    expect(page.locator("#filters")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#filters")).to_be_hidden()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type("bread")  # what was there is selected
    page.keyboard.press("Enter")
    answered(page)
    assert state(page)["q"] == ["bread"]


def test_one_passage_has_a_link(open_page: Callable[..., Page], service: Service) -> None:
    page = open_page("?passage=d7")
    expect(page.locator("#passage")).to_contain_text(service.admin.passage("d7").text)
    expect(page.locator("#passage")).to_contain_text("topic")


def test_a_phone_swipes(open_page: Callable[..., Page]) -> None:
    page = open_page(f"?q={QUERY.replace(' ', '+')}&in.topic=train", viewport=PHONE, has_touch=True)
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    expect(page.locator("#tabs button")).to_have_count(3)
    expect(page.locator('#tabs [aria-current="true"]')).to_have_text("sft")
    page.click('#tabs button:has-text("bm25")')
    expect(page.locator('#tabs [aria-current="true"]')).to_have_text("bm25")
    expect(page.locator('[data-retriever="bm25"] .hit h3').first).to_be_in_viewport()
    page.click("#filters-button")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    small = page.locator("button:visible, select:visible, .pill:visible").evaluate_all(
        "all => all.filter((one) => one.getBoundingClientRect().height < 24).map((one) => one.outerHTML)"
    )
    assert small == [], "a finger needs 24 pixels (WCAG 2.2, 2.5.8)"


def test_dark_and_still_where_that_is_wished(open_page: Callable[..., Page]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = open_page(color_scheme="light").evaluate(ground)
    dark = open_page(color_scheme="dark", reduced_motion="reduce")
    assert light == "rgb(251, 250, 248)"
    assert dark.evaluate(ground) == "rgb(18, 20, 22)"
    moving = "getComputedStyle(document.querySelector('.column > header'), '::after').animationName"
    script = f"""async () => {{
        const {{ waitingColumn }} = await import("./page/hits.js");
        document.querySelector("#columns").append(waitingColumn({{ name: "x", kind: "bm25" }}));
        return {moving};
    }}"""
    assert dark.evaluate(script) == "none"
    assert open_page().evaluate(script) == "search"


def test_what_went_wrong_is_told_with_what_to_do(open_page: Callable[..., Page], service: Service) -> None:
    with pytest.raises(RequestError, match="k: "):
        service.admin.retrieve("a", 1000)
    page = open_page("?q=near&k=1000")
    expect(answered(page).first.locator(".problem")).to_contain_text("Change “k” and search again.")
    page = open_page()
    page.context.set_offline(True)
    page.fill("#query", "near")
    page.keyboard.press("Enter")
    expect(answered(page).first.locator(".problem")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    page.locator('[data-retriever="bm25"] .problem button').click()
    expect(page.locator('[data-retriever="bm25"] .hit')).not_to_have_count(0)


def test_paper_has_the_passages_only(open_page: Callable[..., Page]) -> None:
    page = open_page("?q=near&r=bm25&in.topic=oven")
    answered(page)
    page.emulate_media(media="print")
    expect(page.locator("#printed")).to_be_visible()
    expect(page.locator("#printed")).to_have_text("topic: oven")
    expect(page.locator(".hit").first).to_be_visible()
    expect(page.locator(".controls")).to_be_hidden()
    expect(page.locator("#copy-button")).to_be_hidden()
