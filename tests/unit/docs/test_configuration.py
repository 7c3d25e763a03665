"""The configuration page shows each setting in full; a setting without docstring is an error."""

from typing import Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from docs.generate.configuration import Undocumented, docstrings, page, settings_of
from foveate.core import environment
from foveate.core.settings import Settings


class Nested(BaseModel):
    """A group of values."""

    share: float = Field(default=0.5, gt=0, le=1)
    """A share."""


class Example(BaseSettings):
    """Settings of every kind."""

    model_config = SettingsConfigDict(env_prefix="APP_")

    mode: Literal["fast", "good"] = "fast"
    """fast: a | b. good: <c>."""
    queue_bytes: int = Field(default=2**28, ge=1)
    """Bytes."""
    names: tuple[str, ...] = ("a", "b")
    """Names, as JSON
    {"a": 1}."""
    wait_s: float | None = None
    """Seconds."""
    groups: dict[str, Nested] = Field(default_factory=dict)
    """Groups by name."""


class Silent(BaseSettings):
    """Settings of which two are not documented."""

    host: str = "127.0.0.1"
    port: int = 8000
    level: str = "info"
    """How much is logged."""


RENAMED = {"patience_s": "wait_s"}


def test_settings_have_their_type_default_variable_and_meaning() -> None:
    mode, size, names, wait, groups = settings_of(Example, RENAMED)
    assert mode.variables == ("APP_MODE",)
    assert mode.type == "<code>fast</code> or <code>good</code>"
    assert mode.meaning == "fast: a &#124; b. good: &lt;c>."
    assert (size.type, size.default) == ("integer ≥&nbsp;1", "<code>268435456</code> (256&nbsp;MiB)")
    assert (names.default, names.meaning) == ("<code>a,b</code>", 'Names, as JSON `{"a": 1}`.')
    assert wait.variables == ("APP_WAIT_S", "APP_PATIENCE_S")
    assert (wait.type, wait.default) == ("number or none", "none")
    assert (groups.type, groups.default) == ("JSON object", "<code>{}</code>")


def test_page_shows_deprecated_variables_and_nested_models() -> None:
    text = page(Example, RENAMED)
    assert "<code>APP_WAIT_S</code><br>deprecated: <code>APP_PATIENCE_S</code>" in text
    assert "## Nested\n\nA group of values.\n" in text
    assert "| <code>share</code> | number >&nbsp;0, ≤&nbsp;1 | <code>0.5</code> | A share. |" in text


def test_setting_without_docstring_is_an_error_that_names_it() -> None:
    with pytest.raises(Undocumented, match="Silent: no docstring below the fields host, port;"):
        page(Silent)


def test_docstrings_belong_to_the_field_above() -> None:
    assert docstrings(Silent) == {"level": "How much is logged."}


def test_page_has_a_row_for_each_setting_of_the_server() -> None:
    text = page()
    for name in Settings.model_fields:
        assert f"| <code>{name}</code><br><code>FOVEATE_{name.upper()}</code>" in text
    for old, new in environment.RENAMED.items():
        current = f"<code>FOVEATE_{new.upper()}</code>"
        assert f"{current}<br>deprecated: <code>FOVEATE_{old.upper()}</code>" in text
