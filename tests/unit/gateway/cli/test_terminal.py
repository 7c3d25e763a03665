"""The set-up of logging: it warns of variables that are not settings."""

import logging

import pytest

from foveate.core.settings import Settings
from foveate.gateway.cli.terminal import print_line, start_logging


def test_a_variable_that_is_not_a_setting_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings()
    for name in ("FOVEATE_PORT", "FOVEATE_DRAIN_S", "FOVEATE_PROT"):
        monkeypatch.setenv(name, "1")
    start_logging(settings)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "FOVEATE_PROT is not a setting, and is ignored" in warnings
    assert not any("FOVEATE_PORT " in text or "FOVEATE_DRAIN_S " in text for text in warnings)


def test_a_line_is_printed_without_styles(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("[bold]vit-t[/]: 3 models")
    assert capsys.readouterr().out == "[bold]vit-t[/]: 3 models\n"
