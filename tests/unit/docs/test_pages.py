"""The README and the pages of docs/: every link leads somewhere, and every picture is shown somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PICTURES = sorted([*DOCS.glob("benchmarks/*.png"), *DOCS.glob("models/*.png")])
BUILT = ("configuration.md", "http-api.md", "metrics.md", "reference")
"""Pages of docs/, and a folder of them, that `make docs` writes and the repository does not hold."""
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
MAX_README_LINES = 130


def links(page: Path) -> Iterator[str]:
    """Relative targets of a page, outside of code."""
    for target in LINK.findall(CODE.sub("", page.read_text("utf-8"))):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """What headings can be linked by, as both GitHub and MkDocs make it of plain headings."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if any(there.is_relative_to(DOCS / built) for built in BUILT):
            continue
        assert there.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_pages_of_the_site_link_to_nothing_outside_of_it(page: Path) -> None:
    for target in links(page):
        there = (page.parent / target.partition("#")[0]).resolve()
        assert there.is_relative_to(DOCS), f"{page.name} links to {target}, which the site does not have"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_every_picture_is_shown_on_a_page(picture: Path) -> None:
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    assert picture in shown


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MAX_README_LINES
