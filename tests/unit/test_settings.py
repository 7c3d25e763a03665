"""Settings come from variables, and nonsense is refused."""

import pytest
from pydantic import ValidationError

from foveate.core.errors import SetupError
from foveate.core.settings import Settings
from foveate.gateway.cli import settings_from


def test_variables_set_what_flags_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_PORT", "9000")
    monkeypatch.setenv("FOVEATE_MODELS", "vit-t,vit_tiny_patch16_224")
    settings = settings_from({"port": None, "host": "0.0.0.0"})  # noqa: S104 -- a value, nothing listens
    assert (settings.port, settings.host) == (9000, "0.0.0.0")  # noqa: S104
    assert settings.models == ("vit-t", "vit_tiny_patch16_224")


def test_the_default_address_is_this_machine_only() -> None:
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize("models", ["", ",", "a,a"])
def test_models_are_named_once(monkeypatch: pytest.MonkeyPatch, models: str) -> None:
    monkeypatch.setenv("FOVEATE_MODELS", models)
    with pytest.raises(ValidationError):
        Settings()


def test_a_bad_setting_is_one_sentence() -> None:
    with pytest.raises(SetupError) as refused:
        settings_from({"precision": "fp8"})
    assert "precision" in refused.value.detail
    assert "\n" not in refused.value.detail
