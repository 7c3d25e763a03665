"""What a browser fetches by itself must come from the site; links may lead out of it."""

from pathlib import Path

import pytest

from docs.generate.local_only import external_fetches


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<link rel="preconnect" href="//fonts.example">',
        '<img src="http://cdn.example/x.png">',
        '<img srcset="a.png 1x, https://cdn.example/b.png 2x">',
        '<object data="https://cdn.example/x.svg"></object>',
        '<style>@import "https://fonts.example/css";</style>',
        "<style>body { background: url('//cdn.example/x.png') }</style>",
        '<p style="background: url(https://cdn.example/x.png)">',
        '<svg><image xlink:href="https://cdn.example/x.png"/></svg>',
        '<pre class="mermaid">graph TD</pre>',
    ],
)
def test_external_fetch_is_reported_with_its_page(tmp_path: Path, html: str) -> None:
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "index.html").write_text(html, encoding="utf-8")
    (line,) = external_fetches(tmp_path)
    assert line.startswith("guide/index.html: ")


def test_external_style_in_a_stylesheet_is_reported(tmp_path: Path) -> None:
    (tmp_path / "site.css").write_text(
        "@font-face { src: url(https://fonts.example/a.woff2) }", encoding="utf-8"
    )
    assert external_fetches(tmp_path) == ["site.css: https://fonts.example/a.woff2"]


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://example.com">out</a>',
        '<link rel="canonical" href="https://example.com/">',
        '<script src="../assets/x.js"></script>',
        '<img src="data:image/png;base64,//8=">',
        '<svg xmlns="http://www.w3.org/2000/svg"><use href="#a"/></svg>',
        "<p>@import url(https://example.com) in a text</p>",
    ],
)
def test_links_and_files_of_the_site_are_fine(tmp_path: Path, html: str) -> None:
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    assert external_fetches(tmp_path) == []
