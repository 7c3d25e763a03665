"""The reference: one page per module below the source roots, in a navigation that mirrors the packages."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.generate.markdown import code, prose, table

ROOTS = ("gateway", "services", "models", "core")
"""Source roots, in the order in which they import one another."""
NAMESPACE = "foveate"
FOLDER = "reference"

_INTRO = """\
# Python reference

After reading this page you can locate any public class or function. Each module has one page, generated from
its docstrings. Imports go one way: gateway, services, models, core.

"""
# The search finds guides before modules.
_FRONT = "---\nsearch:\n  boost: 0.5\n---\n\n"


@dataclass(frozen=True, slots=True)
class Module:
    """A module, or a package with the modules inside."""

    name: str
    """Dotted, as it is imported."""
    summary: str
    """The first line of the docstring; empty where there is none."""
    children: tuple["Module", ...] = ()
    package: bool = False
    imported: bool = True
    """False for a folder without `__init__.py`, which has nothing to document but its modules."""

    @property
    def short(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def path(self) -> str:
        """The page, relative to the documentation's root."""
        parts = "/".join(self.name.split(".")[1:])
        return f"{FOLDER}/{parts}/index.md" if self.package else f"{FOLDER}/{parts}.md"


def packages(root: Path) -> dict[str, list[Module]]:
    """By source root, its packages; `root` is the repository's."""
    layers = {}
    for layer in ROOTS:
        paths = sorted((root / layer / NAMESPACE).iterdir())
        folders = [path for path in paths if path.is_dir()]
        modules = [path for path in paths if path.suffix == ".py"]
        layers[layer] = [
            module for folder in folders if (module := _package(folder, f"{NAMESPACE}.{folder.name}"))
        ] + [Module(f"{NAMESPACE}.{path.stem}", _summary(path)) for path in modules]
    return layers


def pages(layers: dict[str, list[Module]]) -> Iterator[tuple[str, str]]:
    """Each page's path and Markdown."""
    rows = [
        (f"[{code(package.name)}]({_link(FOLDER + '/index.md', package)})", layer, prose(package.summary))
        for layer, tops in layers.items()
        for package in tops
    ]
    yield f"{FOLDER}/index.md", _FRONT + _INTRO + table(("Package", "Source root", "What it contains"), rows)
    for tops in layers.values():
        for package in tops:
            for module in _walk(package):
                yield module.path, _page(module)


def navigation(layers: dict[str, list[Module]]) -> list[Any]:
    """The reference's part of the navigation, in MkDocs' form."""
    return [f"{FOLDER}/index.md", *(_entry(package) for tops in layers.values() for package in tops)]


def _package(folder: Path, name: str) -> Module | None:
    """A package with all below it; None for a folder without Python files."""
    children = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            children.append(_package(path, f"{name}.{path.name}"))
        elif path.suffix == ".py" and not path.stem.startswith("_"):
            children.append(Module(f"{name}.{path.stem}", _summary(path)))
    init = folder / "__init__.py"
    if not init.is_file() and not any(children):
        return None
    inside = tuple(child for child in children if child)
    return Module(name, _summary(init) if init.is_file() else "", inside, True, init.is_file())


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def _walk(module: Module) -> Iterator[Module]:
    yield module
    for child in module.children:
        yield from _walk(child)


def _page(module: Module) -> str:
    parts = [_FRONT, f"# {code(module.name)}\n\n"]
    if module.imported:
        parts.append(f"::: {module.name}\n\n")
    if module.children:
        rows = [
            (f"[{code(child.short)}]({_link(module.path, child)})", prose(child.summary))
            for child in module.children
        ]
        parts += ["## Modules\n\n", table(("Module", "What it contains"), rows)]
    return "".join(parts)


def _link(page: str, module: Module) -> str:
    """From a package's page to a module below it."""
    return module.path.removeprefix(page.removesuffix("index.md"))


def _entry(module: Module) -> dict[str, Any]:
    if not module.package:
        return {module.short: module.path}
    entries: Sequence[Any] = [module.path, *(_entry(child) for child in module.children)]
    return {module.short: list(entries)}
