"""The README and the pages of docs/: links lead somewhere, images are shown, and names in the text exist."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from foveate.core.environment import RENAMED
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
IMAGES = sorted([*DOCS.glob("benchmarks/*.png"), *DOCS.glob("models/*.png")])
BUILT = ("configuration.md", "http-api.md", "metrics.md", "reference")
"""Pages of docs/, and a folder of them, that `make docs` writes and the repository does not hold."""
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
ENTRY_POINT_GROUPS = {"foveate.exits", "foveate.compression", "foveate.reducers"}
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""The pages that name only what exists today."""
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


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_every_image_is_shown_on_a_page(image: Path) -> None:
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    assert image in shown


def module_and_attribute(name: str) -> tuple[str, str]:
    """`package.module:attribute` or a dotted name in two parts; the attribute of a module is empty."""
    module, _, attribute = name.partition(":")
    if attribute or find_spec(module) is not None:
        return module, attribute
    module, _, attribute = module.rpartition(".")
    return module, attribute


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_on_a_page_exist(page: Path) -> None:
    names = set(re.findall(r"`(foveate(?:\.\w+)+(?::\w+)?)`", page.read_text("utf-8")))
    for name in names - ENTRY_POINT_GROUPS:
        module, attribute = module_and_attribute(name)
        spec = find_spec(module)
        assert spec is not None, f"{page.name} names {name}, which does not exist"
        if attribute:
            assert spec.origin is not None
            assert re.search(rf"\b{attribute}\b", Path(spec.origin).read_text("utf-8")), name


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_and_metrics_on_a_page_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    variables = set(re.findall(r"\bFOVEATE_[A-Z_]*[A-Z]\b", text))
    assert variables <= {f"FOVEATE_{name.upper()}" for name in Settings.model_fields}
    families = {family.name for family in Metrics().registry.collect()}
    for metric in re.findall(r"\bfoveate_[a-z_]+", text):
        assert metric.removesuffix("_total") in families or metric.startswith("foveate_autoscaler_"), metric


def test_variables_in_the_changelog_exist() -> None:
    variables = set(re.findall(r"\bFOVEATE_[A-Z_]*[A-Z]\b", (ROOT / "CHANGELOG.md").read_text("utf-8")))
    assert variables <= {f"FOVEATE_{name.upper()}" for name in (*Settings.model_fields, *RENAMED)}
    assert variables >= {f"FOVEATE_{name.upper()}" for name in RENAMED}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MAX_README_LINES
