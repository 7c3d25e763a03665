"""Parameter names as training code saves them, translated to timm's names."""

import re
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.weights.not_elastic import STATE_ARCHITECTURE
from foveate.models.weights.state_dict import COUNTERS
from foveate.models.weights.transformers_names import PATCH_EMBEDDINGS, from_transformers

ANCHORS = ("patch_embed.proj.weight", *PATCH_EMBEDDINGS)
"""Ends of the name of the patch embedding: timm's, and those of transformers."""
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that torch.compile, FSDP and activation checkpointing insert at any depth."""
_HEADS = re.compile(
    r"(head|head_dist|fc_norm|norm|classifier|cls_classifier|distillation_classifier|visual_projection)\."
)
"""Parameters of the network that classifiers often keep outside of their backbone."""


def timm_names(state: Mapping[str, Tensor], where: str, prefix: str | None = None) -> dict[str, Tensor]:
    """A network's parameters under timm's names, without the prefixes of wrappers such as DDP's `module.`.

    prefix: read the parameters that begin with it, and no others. None: a prefix that the whole network
    shares is removed. Raises SetupError, one sentence that starts with `where`, when the file holds several
    networks, or parameters that belong to none.
    """
    state = without_wrappers(state, where)
    if prefix is not None:
        state = _under(state, prefix, where)
    prefixes = _prefixes(state)
    if not prefixes:
        raise SetupError(
            f"{where} is not a ViT under timm's names: it has no {ANCHORS[0]}; {beginning(state)}; "
            f"{STATE_ARCHITECTURE}"
        )
    if len(prefixes) > 1:
        raise SetupError(
            f"{where} holds {len(prefixes)} networks, under {', '.join(map(repr, prefixes))}: "
            "name one with --prefix"
        )
    state = _without_prefix(state, prefixes[0], where)
    return state if ANCHORS[0] in state else from_transformers(state)


def without_wrappers(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The parameters without the parts of names that wrappers insert."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in plain:
            raise SetupError(f"{where} holds {short} twice, with and without the name of a wrapper")
        plain[short] = value
    return plain


def _under(state: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, Tensor]:
    """The parameters under a prefix, without it. The empty prefix is the network that has none."""
    others = tuple(set(_prefixes(state)) - {""}) if not prefix else ()
    chosen = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and not name.startswith(others)
    }
    if not chosen:
        raise SetupError(f"{where} has no parameters under the prefix {prefix!r}; {beginning(state)}")
    return chosen


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """What precedes the patch embedding of each network."""
    return sorted({name.removesuffix(end) for name in state for end in ANCHORS if name.endswith(end)})


def beginning(state: Mapping[str, Tensor]) -> str:
    """Part of a sentence that shows what the names look like."""
    return f"its names begin with {', '.join(sorted(state)[:3])}" if state else "it holds no tensors"


def _without_prefix(state: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, Tensor]:
    """The parameters without the prefix of the trunk. Heads may stand outside of it, as in `backbone.`."""
    inside = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
    outer = [part for part in _parents(prefix) if any(n.startswith(part) for n in state)]
    for name in sorted(state):
        if name.startswith(prefix) or name in COUNTERS:
            continue
        # The longest enclosing prefix of the head: `model.` of `model.head.` beside `model.backbone.`.
        short = next((name.removeprefix(part) for part in outer if name.startswith(part)), name)
        if _HEADS.match(short) and short not in inside:
            inside[short] = state[name]
            continue
        raise SetupError(
            f"{where} has {name}, which is no part of the network under {prefix!r}: save the network alone, "
            f"or leave out the rest with --prefix {prefix}"
        )
    return inside


def _parents(prefix: str) -> list[str]:
    """The prefixes that enclose a prefix, the longest first: `a.b.c.` -> `a.b.`, `a.`."""
    parts = prefix.removesuffix(".").split(".")
    return [".".join(parts[:end]) + "." for end in range(len(parts) - 1, 0, -1)]
