"""The structure of the code: folders, test modules, type names and docstrings."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("core", "gateway", "models", "services")
MIN_LINES = 60
"""Longer modules have a test module of their own."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def modules() -> list[Path]:
    """All production modules, relative to the repository."""
    return [
        path.relative_to(ROOT)
        for source in SOURCES
        for path in sorted((ROOT / source / "foveate").rglob("*.py"))
    ]


@cache
def parsed(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text())


def test_module_of(module: Path) -> Path:
    """The mirrored test module: `core/foveate/core/plan.py` -> `tests/unit/core/test_plan.py`."""
    package, name = module.parts[2:-1], module.stem
    return Path("tests", "unit", *package, f"test_{name}.py")


test_module_of.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(("folder", "limit"), [("gateway/foveate/gateway", 12), ("models/foveate/models", 4)])
def test_folders_have_few_files(folder: str, limit: int) -> None:
    files = list((ROOT / folder).glob("*.py"))
    assert 0 < len(files) <= limit


def test_every_module_over_60_lines_has_a_test_module() -> None:
    missing = [
        str(test_module_of(module))
        for module in modules()
        if module.name != "__init__.py"
        and len((ROOT / module).read_text().splitlines()) > MIN_LINES
        and not (ROOT / test_module_of(module)).exists()
    ]
    assert not missing


def test_test_folders_mirror_the_packages() -> None:
    packages = {Path(*module.parts[2:-1]) for module in modules()}
    folders = {
        path.parent.relative_to(ROOT / "tests/unit") for path in (ROOT / "tests/unit").rglob("test_*.py")
    }
    others = {"", ".", "ci", "docs", "loadtests", "training"}
    strangers = [
        str(folder)
        for folder in folders
        if folder not in packages and (folder.parts or ("",))[0] not in others
    ]
    assert not strangers


def test_one_meaning_per_type_name() -> None:
    places = defaultdict(set)
    for source in (*SOURCES, "loadtests", "tests"):
        for path in (ROOT / source).rglob("*.py"):
            for node in ast.walk(parsed(path.relative_to(ROOT))):
                if isinstance(node, ast.ClassDef):
                    places[node.name].add(str(path.relative_to(ROOT)))
    assert not {name: sorted(where) for name, where in places.items() if len(where) > 1}


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Public classes, functions and methods, by their qualified names; overload signatures are left out."""
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        if any("overload" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node.body, f"{node.name}.")


def test_every_public_definition_has_a_docstring() -> None:
    missing = [str(module) for module in modules() if not ast.get_docstring(parsed(module))]
    for module in modules():
        for name, node in public_definitions(parsed(module).body):
            if not ast.get_docstring(node):
                missing.append(f"{module}:{node.lineno} {name}")
    assert not missing
