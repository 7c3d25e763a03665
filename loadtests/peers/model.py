"""A trained ViT-S/16: the shipped vit-t, widened without a change of its function.

"Net2Net: Accelerating Learning via Knowledge Transfer", section 2.2: channels are copied, and weights that
read copied channels are divided by the number of copies. LayerNorm needs no change, because [x; x] has the
mean and the variance of x. Each head is copied as a unit, so attention keeps its scale.
"""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from foveate.models.weights import hub
from foveate.models.weights.checkpoint import attach
from foveate.models.weights.hub import Checkpoint

TIMES = 2
EXTRAS = ("exit_heads.", "gates.")
"""Prefixes of parameters outside the trunk, which are dropped."""
TOKENS = ("pos_embed", "cls_token", "dist_token", "reg_token")


def widen(checkpoint: Checkpoint, name: str, times: int = TIMES) -> Checkpoint:
    """The same function with `times` the width and heads: logits at the full plan are equal to float error.

    Raises SetupError for a network with norms inside attention, which cannot be widened like this.
    """
    old = checkpoint.config
    card = replace(
        checkpoint,
        name=name,
        config=replace(old, width=times * old.width, heads=times * old.heads),
        exits=(),
        gates=(),
        description=f"{checkpoint.name} with each channel and head copied {times} times, to measure speed",
    )
    state = checkpoint.model.state_dict()
    wide = {n: _widened(n, v.detach(), times) for n, v in state.items() if not n.startswith(EXTRAS)}
    return attach(card, wide, name)


def _widened(name: str, value: Tensor, times: int) -> Tensor:
    """One parameter: copied along its outputs, copied and divided along its inputs."""
    layer, _, kind = name.rpartition(".")
    if name in TOKENS:
        return value.repeat(1, 1, times)
    if layer == "patch_embed.proj":  # its input is the image
        return value.repeat(times, *[1] * (value.dim() - 1))
    if layer in ("head", "head_dist"):  # their outputs are the classes
        return value if kind == "bias" else value.repeat(1, times) / times
    if layer.endswith(".qkv"):  # its outputs are queries, keys and values of all heads
        parts = value.reshape(3, -1, *value.shape[1:])
        copied = parts.repeat(1, times) if kind == "bias" else parts.repeat(1, times, times) / times
        return copied.flatten(0, 1)
    return value.repeat(times) if value.dim() == 1 else value.repeat(times, times) / times


def saved(folder: Path, base: str = "vit-t") -> Path:
    """The path of the widened model, for `foveate serve --model`; the first call writes the file."""
    path = folder / "vit-s-wide.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        hub.save(partial, widen(hub.load(base), path.stem))
        partial.replace(path)
    return path
