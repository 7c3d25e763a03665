"""MkDocs hooks: add the generated pages before a build, and check the site after it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from docs.generate import configuration, http_api, local_only, metrics, reference

REFERENCE = "reference/"
"""What stands in the navigation of mkdocs.yml for the generated reference."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the modules into the navigation."""
    modules = reference.navigation(reference.packages(_root(config)))
    config.nav = _expanded(config.nav, modules)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages. They exist in the site only, never in the repository."""
    for path, text in _pages(config):
        files.append(File.generated(config, path, content=text))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Fail the build where a page would fetch something from another server."""
    fetches = local_only.external_fetches(Path(config.site_dir))
    if fetches:
        raise PluginError("the site would fetch from other servers:\n" + "\n".join(fetches))


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def _pages(config: MkDocsConfig) -> Iterator[tuple[str, str]]:
    openapi = http_api.document()
    yield "http-api.md", http_api.page(openapi)
    yield "openapi.json", http_api.as_json(openapi)
    try:
        yield "configuration.md", configuration.page()
    except configuration.Undocumented as error:
        raise PluginError(str(error)) from None
    yield "metrics.md", metrics.page()
    yield from reference.pages(reference.packages(_root(config)))


def _expanded(nav: Any, modules: list[Any]) -> Any:
    """The navigation with the modules in place of the entry that stands for them."""
    if isinstance(nav, list):
        return [_expanded(entry, modules) for entry in nav]
    if isinstance(nav, dict):
        return {title: _expanded(entry, modules) for title, entry in nav.items()}
    return modules if nav == REFERENCE else nav
