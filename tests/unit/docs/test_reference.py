"""The reference follows the packages on disk, so that a module that moves needs no edit of the docs."""

from pathlib import Path

import pytest

from docs.generate.reference import Module, navigation, packages, pages

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        "gateway/foveate/gateway/__init__.py": '"""HTTP in,\nHTTP out.\n\nMore."""',
        "gateway/foveate/gateway/__main__.py": "",
        "gateway/foveate/gateway/routes/segment.py": '"""Masks."""',
        "gateway/foveate/gateway/static/page.html": "<p>",
        "services/foveate/cache/__init__.py": "",
        "models/foveate/models/__init__.py": "",
        "core/foveate/core/__init__.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_packages_are_the_folders_with_python_files(tree: Path) -> None:
    (gateway,) = packages(tree)["gateway"]
    segment = Module("foveate.gateway.routes.segment", "Masks.")
    routes = Module("foveate.gateway.routes", "", (segment,), package=True, imported=False)
    assert gateway == Module("foveate.gateway", "HTTP in, HTTP out.", (routes,), package=True)


def test_each_module_has_a_page_and_packages_link_to_what_is_inside(tree: Path) -> None:
    texts = dict(pages(packages(tree)))
    assert "::: foveate.gateway.routes.segment\n" in texts["reference/gateway/routes/segment.md"]
    assert "[<code>segment</code>](segment.md) | Masks. |" in texts["reference/gateway/routes/index.md"]
    assert ":::" not in texts["reference/gateway/routes/index.md"]
    assert "[<code>routes</code>](routes/index.md)" in texts["reference/gateway/index.md"]
    assert "[<code>foveate.cache</code>](cache/index.md) | services |" in texts["reference/index.md"]


def test_navigation_mirrors_the_packages(tree: Path) -> None:
    index, gateway, *_ = navigation(packages(tree))
    routes = ["reference/gateway/routes/index.md", {"segment": "reference/gateway/routes/segment.md"}]
    assert index == "reference/index.md"
    assert gateway == {"gateway": ["reference/gateway/index.md", {"routes": routes}]}


def test_every_package_of_the_repository_is_there() -> None:
    names = {package.name for tops in packages(ROOT).values() for package in tops}
    assert names >= {"foveate.core", "foveate.models", "foveate.engine", "foveate.cluster", "foveate.gateway"}
    assert "foveate.serve" in names  # a module, and no package
