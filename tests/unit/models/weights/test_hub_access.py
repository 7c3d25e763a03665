"""A hub that cannot be reached: the answer is one sentence, and it comes at once."""

import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import SetupError
from foveate.models import huggingface
from foveate.models.opaque import timm_classifiers
from foveate.models.weights import hub
from foveate.models.weights.hub_access import hub_access
from tests.support.torchvision_ops import import_timm, import_transformers

import_timm()
import_transformers()

CLOSED = "http://127.0.0.1:9"
"""No server listens on the discard port."""
BOUND_S = 15.0
"""A generous bound; huggingface_hub's own repetitions take more than 20 s."""


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The hub's settings: a closed port, and an empty cache."""
    module = import_module("huggingface_hub.constants")
    monkeypatch.setattr(module, "ENDPOINT", CLOSED)
    monkeypatch.setattr(
        module, "HUGGINGFACE_CO_URL_TEMPLATE", CLOSED + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    yield module
    assert not module.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("load", "name", "path"),
    [
        (huggingface.load, "owner/net", "./net"),
        (hub.load, "vit_tiny_patch16_224", "./vit_tiny_patch16_224"),
        (hub.load, "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "./vit_tiny_patch16_224.augreg_in21k"),
        (hub.load, "hf-hub:net", "./net"),
        (timm_classifiers.load, "resnet18.a1_in1k", "./resnet18.a1_in1k"),
    ],
)
def test_unreachable_hub(constants: Any, load: Callable[[str], Any], name: str, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(SetupError) as refused:
        load(name)
    assert time.monotonic() - start < BOUND_S
    said = refused.value.detail
    assert f"{name} cannot be fetched: the hub at {CLOSED} cannot be reached, and the cache in" in said
    assert f"in {constants.HF_HUB_CACHE} has no complete copy of it" in said
    assert "a cached copy works without a network, also under HF_HUB_OFFLINE=1" in said
    assert said.endswith(f"as in --model {path}")


def test_hub_that_is_switched_off(constants: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SetupError, match="is switched off by HF_HUB_OFFLINE, and the cache"):
        timm_classifiers.load("resnet18.a1_in1k")
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_cached_copies_are_used_while_the_hub_is_unreachable(constants: Any) -> None:
    with hub_access("owner/net"):
        assert constants.HF_HUB_OFFLINE


def test_other_errors_are_kept(constants: Any) -> None:
    with pytest.raises(SetupError, match=r"^not served$"), hub_access("owner/net"):
        raise SetupError("not served")
