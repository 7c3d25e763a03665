"""A check that the built site fetches no script, style, font or image from another server."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_EXTERNAL = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
_FETCHED = ("src", "data", "poster", "background")
"""Attributes whose address a browser fetches by itself, besides `srcset`, which holds several."""
_NOT_FETCHED = {"canonical", "prev", "next", "alternate", "author", "license", "help", "search"}
"""Relations of a <link> that are not fetched with the page."""


def external_fetches(site: Path) -> list[str]:
    """One line per file and address that a browser would fetch from another server."""
    return [
        f"{path.relative_to(site)}: {address}"
        for path in sorted(site.rglob("*"))
        if path.suffix in (".html", ".css", ".svg")
        for address in dict.fromkeys(_fetches(path))
    ]


def _fetches(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        yield from _CSS.findall(text)
        return
    page = _Page()
    page.feed(text)
    page.close()
    yield from page.fetched


class _Page(HTMLParser):
    """Collects what one HTML or SVG file would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        given = {name: value or "" for name, value in attributes}
        self.fetched += _CSS.findall(given.get("style", ""))
        addresses = [given[name] for name in _FETCHED if name in given] + given.get("srcset", "").split(",")
        self.fetched += [address for address in addresses if _EXTERNAL.match(address)]
        relations = set(given.get("rel", "").lower().split())
        href = given.get("href", given.get("xlink:href", ""))
        fetches = (tag == "link" and not relations <= _NOT_FETCHED) or tag in ("image", "use")
        if fetches and _EXTERNAL.match(href):
            self.fetched.append(href)
        # The theme loads Mermaid from another server for pages that hold a diagram in its language.
        if "mermaid" in given.get("class", "").split():
            self.fetched.append("a Mermaid diagram; use an SVG file instead")

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.fetched += _CSS.findall(data)
