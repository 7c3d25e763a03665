"""The configuration inferred from the shapes of weights."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from foveate.core.checkpoint_options import CheckpointOptions
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
        {"gated_mlp": True, "mlp_ratio": 2.5, "activation": "silu", "mlp_norm": True, "attn_norm": True},
        {"class_token": False, "pool": "map", "pool_ratio": 2.0},
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


@pytest.mark.parametrize(
    "changes", [{"pos_embed": False}, {"pool": "map"}, {"pre_norm": True, "final_norm": False}]
)
def test_positions_that_the_weights_do_not_show_must_be_stated(changes: dict[str, Any]) -> None:
    state = weights(replace(SMALL, **changes))
    with pytest.raises(SetupError, match="state timm's architecture with --architecture, as in vit_small"):
        config_from_weights(state, "a")
    name = "vit_small_patch16_dinov3.lvd1689m"
    with pytest.raises(SetupError, match=f"{name} has a width of 384, and a shows 128"):
        config_from_weights(state, "a", CheckpointOptions(architecture=name))
    stated = CheckpointOptions(architecture=name, pool="token", heads=2)
    if "pos_embed" in changes:
        config = config_from_weights(state, "a", stated)
        assert (config.rope, config.rope_half, config.image_size, config.eps) == ("dinov3", True, 256, 1e-5)
        assert config.pool == "token"


def test_a_pooling_that_the_weights_lack_cannot_be_stated() -> None:
    with pytest.raises(SetupError, match="no attention pooling, so its pool cannot be 'map'"):
        config_from_weights(weights(SMALL), "a", CheckpointOptions(pool="map"))


def test_unknown_number_of_heads_is_refused() -> None:
    with pytest.raises(SetupError, match="so its number of heads is unknown"):
        config_from_weights(weights(replace(SMALL, width=96)), "a")
