"""Parameters of timm's `Eva` class under the names of its `VisionTransformer`, which are the trunk's."""

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
    """The parameters under the trunk's names. Those that are no such part, or whose other parts are missing,
    keep their name.

    Separate queries, keys and values become one map, and so do the two of a gated MLP, the gate first. Keys
    without a bias get one of zero where queries have one.
    """
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for name, value in state.items():
        joined = _JOINED.fullmatch(name)
        if joined is None:
            renamed[_RENAMED.sub(r"\1.ls\2.gamma", name)] = value
            continue
        block, part, kind, biased, gate, gate_kind = joined.groups()
        if gate:
            parts[f"{block}mlp.fc1.{gate_kind}"][gate] = name
        else:
            parts[f"{block}attn.qkv.{kind or 'bias'}"][part or biased] = name
    for name, names in parts.items():
        tensors = _in_order({part: state[own] for part, own in names.items()}, name.endswith("bias"))
        if tensors and name not in state:
            renamed[name] = torch.cat(tensors)
        else:
            renamed |= {own: state[own] for own in names.values()}
    return renamed


def _in_order(parts: Mapping[str, Tensor], bias: bool) -> list[Tensor]:
    """Queries, keys and values, or gate and hidden layer; empty where a part is missing.

    bias: a missing one of the keys is zero.
    """
    if bias and "q" in parts:
        parts = {"k": torch.zeros_like(parts["q"])} | dict(parts)
    order = "qkv" if "q" in parts else "gx"
    return [parts[name] for name in order] if parts.keys() == set(order) else []
