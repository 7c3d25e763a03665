"""The configuration inferred from the shapes of weights."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.weights import hub
from foveate.models.weights.config_from_weights import config_from_weights
from tests.support.checkpoints import SMALL, weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"classes": 0},
        {"distilled": True},
        {"registers": 4, "embed_prefix": False},
        {"registers": 2},
        {"pre_norm": True, "patch_bias": False, "eps": 1e-5},
        {"layer_scale": True, "qkv_bias": False},
        {"qk_norm": True, "heads": 4},
        {"class_token": False, "pool": "avg", "fc_norm": True, "final_norm": False},
        {"mlp_ratio": 3.0, "patch_size": 8},
    ],
)
def test_config_is_inferred_without_a_card(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = ViTConfig(**(asdict(SMALL) | changes))
    save_file(weights(config), tmp_path / "a b.safetensors")
    loaded = hub.load(str(tmp_path / "a b.safetensors"))
    assert loaded.config == config
    assert "inferred" in loaded.description
    # Whatever the file is called, its name makes plans.
    assert Plan(loaded.name, 64).variant == "a-b"


def test_unknown_number_of_heads_is_refused() -> None:
    with pytest.raises(SetupError, match="so its number of heads is unknown"):
        config_from_weights(weights(replace(SMALL, width=96)), "a")
