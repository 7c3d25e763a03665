"""Names of parameters under the prefixes of wrappers, and of networks that share a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from foveate.models.weights.parameter_names import timm_names
from tests.support.checkpoints import SMALL, answer, weights

pytestmark = pytest.mark.usefixtures("one_thread")
STATE = weights(SMALL)
WITHOUT_HEAD = {name: value for name, value in STATE.items() if not name.startswith("head.")}


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def compiled_blocks() -> dict[str, Tensor]:
    """Blocks that were compiled one by one."""
    return {
        ".".join([*name.split(".")[:2], "_orig_mod", *name.split(".")[2:]])
        if name.startswith("blocks.")
        else name: v
        for name, v in STATE.items()
    }


HEAD = {"head.weight": STATE["head.weight"], "head.bias": STATE["head.bias"]}
WRAPPED: dict[str, Callable[[], dict[str, Tensor]]] = {
    "DDP": lambda: under("module."),
    "compile": lambda: under("_orig_mod."),
    "compile in DDP": lambda: under("module._orig_mod."),
    "blocks compiled one by one": compiled_blocks,
    "FSDP": lambda: under("_fsdp_wrapped_module.model."),
    "Lightning": lambda: under("state_dict.model."),
    "own": lambda: under("my.vision.net."),
    "backbone and head": lambda: under("backbone.", WITHOUT_HEAD) | HEAD,
    "backbone and head in a module": lambda: under("model.backbone.", WITHOUT_HEAD) | under("model.", HEAD),
    "average of torch": lambda: under("module.") | {"n_averaged": torch.tensor(7.0)},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_prefixes_are_removed(tmp_path: Path, kind: str) -> None:
    save_file(STATE, tmp_path / "plain.safetensors")
    save_file(WRAPPED[kind](), tmp_path / "wrapped.safetensors")
    plain, wrapped = (hub.load(str(tmp_path / f"{name}.safetensors")) for name in ("plain", "wrapped"))
    assert wrapped.config == plain.config
    assert torch.equal(answer(wrapped), answer(plain))


def compiled(network: nn.Module) -> Any:
    return torch.compile(network, backend="eager")


@pytest.mark.parametrize("wrap", [AveragedModel, nn.DataParallel, compiled])
def test_wrappers_of_torch_itself(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = ElasticViT(ViTConfig(image_size=32, width=64, depth=1, heads=1, classes=2))
    wrapped = wrap(network).state_dict()
    assert {*wrapped} != {*network.state_dict()}
    assert {*timm_names(wrapped, "a")} == {*network.state_dict()}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (
            under("model.") | under("model_ema.module."),
            "holds 2 networks, under 'model.', 'model_ema.module.'",
        ),
        (STATE | under("ema."), "holds 2 networks, under '', 'ema.': name one with --prefix"),
        (under("model.") | {"criterion.weight": torch.ones(3)}, "a has criterion.weight, which is no part"),
        (
            under("visual.trunk.") | {"text.proj": torch.ones(3)},
            "leave out the rest with --prefix visual.trunk.",
        ),
        ({"conv1.weight": torch.ones(3)}, "no patch_embed.proj.weight; its names begin with conv1.weight"),
        ({}, "it holds no tensors"),
        (STATE | under("_orig_mod."), "holds blocks.0.attn.proj.bias twice"),
    ],
)
def test_names_that_are_not_understood_are_refused(state: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(SetupError) as refused:
        timm_names(dict(sorted(state.items())), "a")
    assert sentence in refused.value.detail


@pytest.mark.parametrize(
    ("prefix", "factor"), [("model.", 1.0), ("model_ema.module.", 2.0), ("model_ema.", 2.0)]
)
def test_stated_prefix_names_one_of_two_networks(tmp_path: Path, prefix: str, factor: float) -> None:
    doubled = {name: value * 2 for name, value in STATE.items()}
    both = under("model.") | under("model_ema.module.", doubled) | {"loss.weight": torch.ones(3)}
    save_file(both, tmp_path / "a.safetensors")
    loaded = hub.load(str(tmp_path / "a.safetensors"), options=CheckpointOptions(prefix=prefix))
    assert torch.equal(loaded.model.get_parameter("head.weight"), STATE["head.weight"] * factor)


def test_empty_prefix_is_the_network_without_one() -> None:
    doubled = {name: value * 2 for name, value in STATE.items()}
    chosen = timm_names(STATE | under("ema.", doubled), "a", "")
    assert {*chosen} == {*STATE}
    assert torch.equal(chosen["head.bias"], STATE["head.bias"])


def test_prefix_without_parameters_is_refused() -> None:
    with pytest.raises(
        SetupError, match=r"no parameters under the prefix 'net\.'; its names begin with blocks"
    ):
        timm_names(STATE, "a", "net.")
