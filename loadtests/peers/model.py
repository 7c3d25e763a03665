"""A trained ViT-S/16 made from the shipped vit-t by widening it without changing what it computes.

"Net2Net: Accelerating Learning via Knowledge Transfer", section 2.2: channels are copied, and weights that
read copied channels are divided by the number of copies. LayerNorm needs nothing: [x; x] has the mean and
the variance of x. Heads are copied whole, so that attention keeps its scale.
"""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from foveate.models.weights import hub
from foveate.models.weights.checkpoint import attach
from foveate.models.weights.hub import Checkpoint

TIMES = 2
EXTRAS = ("exit_heads.", "gates.")
"""Trained beside the trunk, and left behind."""
TOKENS = ("pos_embed", "cls_token", "dist_token", "reg_token")


def widen(checkpoint: Checkpoint, name: str, times: int = TIMES) -> Checkpoint:
    """The same function at `times` the width and heads: at full, logits are equal to float error.

    Raises SetupError for a network that cannot be widened like this (norms inside attention).
    """
    old = checkpoint.config
    card = replace(
        checkpoint,
        name=name,
        config=replace(old, width=times * old.width, heads=times * old.heads),
        exits=(),
        gates=(),
        description=f"{checkpoint.name} with each channel and head {times} times, to measure speed with",
    )
    state = checkpoint.model.state_dict()
    wide = {n: _widened(n, v.detach(), times) for n, v in state.items() if not n.startswith(EXTRAS)}
    return attach(card, wide, name)


def _widened(name: str, value: Tensor, times: int) -> Tensor:
    """One parameter: copied along what it writes, copied and divided along what it reads."""
    layer, _, kind = name.rpartition(".")
    if name in TOKENS:
        return value.repeat(1, 1, times)
    if layer == "patch_embed.proj":  # it reads the picture
        return value.repeat(times, *[1] * (value.dim() - 1))
    if layer in ("head", "head_dist"):  # they write the classes
        return value if kind == "bias" else value.repeat(1, times) / times
    if layer.endswith(".qkv"):  # it writes queries, keys and values, each of them all heads
        parts = value.reshape(3, -1, *value.shape[1:])
        copied = parts.repeat(1, times) if kind == "bias" else parts.repeat(1, times, times) / times
        return copied.flatten(0, 1)
    return value.repeat(times) if value.dim() == 1 else value.repeat(times, times) / times


def saved(folder: Path, base: str = "vit-t") -> Path:
    """The widened model as a file that `foveate serve --model` loads; made on the first call."""
    path = folder / "vit-s-wide.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".partial")
        hub.save(beside, widen(hub.load(base), path.stem))
        beside.replace(path)
    return path
