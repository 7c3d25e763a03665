"""Parameters of timm's `Eva` class under the names of its `VisionTransformer`, which are those of the trunk."""

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

_RENAMED = re.compile(r"(blocks\.\d+)\.gamma_([12])")
_JOINED = re.compile(
    r"(blocks\.\d+\.)(?:attn\.([qkv])_proj\.(weight|bias)|attn\.([qv])_bias|mlp\.fc1_([gx])\.(weight|bias))"
)
"""Parts of queries, keys and values, and of the gate and the other hidden layer of a gated MLP."""


def is_eva(state: Mapping[str, Tensor]) -> bool:
    """Whether parameters have names of timm's `Eva` class that its `VisionTransformer` does not have."""
    return any(_RENAMED.fullmatch(name) or _JOINED.fullmatch(name) for name in state)


def trunk_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters under the trunk's names. Other networks' parameters stay as they are.

    Separate queries, keys and values become one map, and so do the two of a gated MLP, the gate first. Keys
    without a bias get one of zero where queries have one.
    """
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in state.items():
        joined = _JOINED.fullmatch(name)
        if joined is None:
            renamed[_RENAMED.sub(r"\1.ls\2.gamma", name)] = value
            continue
        block, part, kind, biased, gate, gate_kind = joined.groups()
        if gate:
            parts[f"{block}mlp.fc1.{gate_kind}"][gate] = value
        else:
            parts[f"{block}attn.qkv.{kind or 'bias'}"][part or biased] = value
    for name, values in parts.items():
        renamed[name] = _joined(values)
    return renamed


def _joined(parts: Mapping[str, Tensor]) -> Tensor:
    """Queries, keys and values below one another, or gate and hidden layer; a missing key bias is zero."""
    if "q" in parts and parts["q"].ndim == 1:
        parts = {"k": torch.zeros_like(parts["q"])} | dict(parts)
    return torch.cat([parts[name] for name in ("g", "x", "q", "k", "v") if name in parts])
