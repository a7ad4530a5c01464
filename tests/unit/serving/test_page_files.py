"""The page's files: nothing from elsewhere, nothing inline, no text that becomes HTML, colours that can be read."""

import re
from html.parser import HTMLParser
from importlib import resources
from itertools import product

import pytest

PAGE = {
    entry.name: entry.read_text(encoding="utf-8")
    for entry in (resources.files("genret.serving") / "page").iterdir()
    if entry.is_file()
}
SCRIPTS = sorted(name for name in PAGE if name.endswith(".js"))
# The namespace of SVG is a name, and is never fetched.
NAMES = "http://www.w3.org/2000/svg"


class Reader(HTMLParser):
    """Collects elements and attributes, and the text in scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.inline += data.strip()


@pytest.fixture(scope="module")
def html() -> Reader:
    reader = Reader()
    reader.feed(PAGE["index.html"])
    return reader


def test_nothing_comes_from_elsewhere() -> None:
    for name, text in PAGE.items():
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text.replace(NAMES, ""), re.IGNORECASE), name
        assert "@import" not in text and "url(" not in text, name


def test_nothing_is_inline(html: Reader) -> None:
    assert html.inline == ""
    for tag, attributes in html.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)


@pytest.mark.parametrize("name", SCRIPTS)
def test_text_never_becomes_html(name: str) -> None:
    forbidden = (
        "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\\(|new Function|srcdoc|DOMParser|javascript:"
    )
    assert not re.search(forbidden, PAGE[name])


def test_every_file_is_used_and_there(html: Reader) -> None:
    linked = {
        value.removeprefix("page/")
        for _, attributes in html.elements
        for key, value in attributes.items()
        if key in ("src", "href") and value and value.startswith("page/")
    }
    imported = {match for name in SCRIPTS for match in re.findall(r'from "\./([a-z]+\.js)"', PAGE[name])}
    assert linked | imported | {"index.html"} == set(PAGE)


def test_scripts_find_the_elements_they_ask_for(html: Reader) -> None:
    there = {attributes["id"] for _, attributes in html.elements if "id" in attributes}
    asked = {match for name in SCRIPTS for match in re.findall(r'byId\("([a-z-]+)"\)', PAGE[name])}
    assert asked <= there
    for tag, attributes in html.elements:
        if tag == "label" and "for" in attributes:
            assert attributes["for"] in there


def colours(dark: bool) -> dict[str, str]:
    sheets = re.findall(r":root \{(.*?)\}", PAGE["page.css"], re.DOTALL)
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", sheets[0]))
    return found | dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", sheets[1])) if dark else found


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


GROUNDS = {
    "ink": ("paper", "surface", "raised", "soft", "mark", "sure", "likely", "open", "unlikely", "remote"),
    "muted": ("paper", "surface", "raised", "soft"),
    "accent": ("paper", "surface", "soft"),
    "on-accent": ("accent",),
    "warning": ("warning-soft",),
    "error": ("paper", "surface"),
}


@pytest.mark.parametrize(("dark", "front"), list(product((False, True), GROUNDS)))
def test_text_can_be_read(dark: bool, front: str) -> None:
    """At least the 4.5 to 1 that WCAG asks of text at level AA."""
    palette = colours(dark)
    for ground in GROUNDS[front]:
        light, low = sorted((luminance(palette[front]), luminance(palette[ground])), reverse=True)
        assert (light + 0.05) / (low + 0.05) >= 4.5, (front, ground)
