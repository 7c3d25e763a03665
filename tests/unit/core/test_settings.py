"""Settings are read from flags and variables, and invalid values are refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from foveate.core.errors import SetupError
from foveate.core.settings import Settings
from foveate.gateway.cli.main import settings_from


def test_flags_override_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_PORT", "9000")
    monkeypatch.setenv("FOVEATE_MODELS", "vit-t,vit_tiny_patch16_224")
    settings = settings_from({"port": None, "host": "0.0.0.0"})  # noqa: S104 -- a value, nothing listens
    assert (settings.port, settings.host) == (9000, "0.0.0.0")  # noqa: S104
    assert settings.models == ("vit-t", "vit_tiny_patch16_224")


def test_the_default_address_is_local() -> None:
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize("models", ["", ",", "a,a"])
def test_models_are_required_and_unique(monkeypatch: pytest.MonkeyPatch, models: str) -> None:
    monkeypatch.setenv("FOVEATE_MODELS", models)
    with pytest.raises(ValidationError):
        Settings()


def test_an_invalid_setting_is_refused_in_one_sentence() -> None:
    with pytest.raises(SetupError) as refused:
        settings_from({"precision": "fp8"})
    assert "precision" in refused.value.detail
    assert "\n" not in refused.value.detail


def test_old_names_of_settings_work_for_one_release_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FOVEATE_DRAIN_S", "7")
    monkeypatch.setenv("FOVEATE_PATIENCE_S", "8")
    monkeypatch.setenv("FOVEATE_DEFAULT_DEADLINE_S", "9")
    old: dict[str, Any] = {"body_s": 3, "policy": "promise"}
    settings = Settings(**old)
    assert (settings.drain_timeout_s, settings.default_deadline_s) == (7, 9), "the new name wins"
    assert (settings.body_timeout_s, settings.policy) == (3, "slo")
    warned = [record.message for record in caplog.records]
    assert len(warned) == 4
    assert "drain_s (FOVEATE_DRAIN_S) is now called drain_timeout_s (FOVEATE_DRAIN_TIMEOUT_S)" in warned[1]
