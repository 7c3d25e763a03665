"""Parameter names of transformers' vision transformers, translated to timm's names."""

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

PATCH_EMBEDDINGS = ("embeddings.patch_embeddings.projection.weight", "embeddings.patch_embedding.weight")
"""Names of the patch embedding: that of ViT, DeiT and DINOv2, and that of CLIP and SigLIP."""
_LAYER = r"(?:encoder\.)?layers?\.(\d+)\."
_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"embeddings\.(cls_token|class_embedding)$", "cls_token"),
        (r"embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
        (r"embeddings\.register_tokens$", "reg_token"),
        (r"embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
        (rf"{_LAYER}(layernorm_before|layer_norm1|norm1)\.", r"blocks.\1.norm1."),
        (rf"{_LAYER}(layernorm_after|layer_norm2|norm2)\.", r"blocks.\1.norm2."),
        (
            rf"{_LAYER}(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.",
            r"blocks.\1.attn.proj.",
        ),
        (rf"{_LAYER}(intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.", r"blocks.\1.mlp.fc1."),
        (rf"{_LAYER}(output\.dense|mlp\.fc2|mlp\.weights_out|mlp\.down_proj)\.", r"blocks.\1.mlp.fc2."),
        (rf"{_LAYER}layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
        (r"pre_layrnorm\.", "norm_pre."),  # transformers spells it so
        (r"head\.probe$", "attn_pool.latent"),
        (r"head\.attention\.out_proj\.", "attn_pool.proj."),
        (r"head\.layernorm\.", "attn_pool.norm."),
        (r"head\.mlp\.", "attn_pool.mlp."),
        (r"(layernorm|post_layernorm)\.", "norm."),
        (r"(classifier|cls_classifier|visual_projection)\.", "head."),
        (r"distillation_classifier\.", "head_dist."),
    )
)
_QKV = re.compile(
    rf"{_LAYER}(?:attention\.attention\.(query|key|value)|(?:attention|self_attn)\.([qkv])_proj)\.(weight|bias)"
)
_GATE = re.compile(rf"{_LAYER}mlp\.(gate|up)_proj\.(weight|bias)")
_POOL_QKV = re.compile(r"head\.attention\.in_proj_(weight|bias)")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of transformers' ViT, DeiT, DINOv2, CLIP and SigLIP under timm's names and in its shapes.

    Both the names that transformers 4 saves and the modules' names in transformers 5 are known. Unknown names
    stay as they are. A distillation token without a classifier of its own takes part in attention alone: it
    is a register.
    """
    token = "dist_token" if any(n.startswith("distillation_classifier.") for n in state) else "reg_token"
    renamed: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in state.items():
        if match := _QKV.fullmatch(name):
            block, word, letter, kind = match.groups()
            joined[f"blocks.{block}.attn.qkv.{kind}"][letter or word[0]] = value
        elif match := _GATE.fullmatch(name):
            block, part, kind = match.groups()
            joined[f"blocks.{block}.mlp.fc1.{kind}"][part] = value
        elif match := _POOL_QKV.fullmatch(name):
            width = len(value) // 3
            renamed[f"attn_pool.q.{match[1]}"] = value[:width]
            renamed[f"attn_pool.kv.{match[1]}"] = value[width:]
        elif name == "embeddings.distillation_token":
            renamed[token] = value
        else:
            renamed[_renamed(name)] = value
    for name, parts in joined.items():
        order = ("gate", "up") if "mlp" in name else ("q", "k", "v")
        if len(parts) == len(order):
            renamed[name] = torch.cat([parts[part] for part in order])
    return _in_timms_shapes(renamed, registers="embeddings.register_tokens" in state)


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        if pattern.match(name):
            return pattern.sub(replacement, name, count=1)
    return name


def _in_timms_shapes(state: dict[str, Tensor], registers: bool) -> dict[str, Tensor]:
    """Tokens and positions with the dimension of the batch.

    registers: the position embeddings cover the class token and not the registers, as in DINOv2. As in timm,
    the class token's own position then becomes a part of the token.
    """
    for name in ("cls_token", "pos_embed"):
        if name in state:
            state[name] = state[name][(None,) * (3 - state[name].ndim)]
    if registers and {"cls_token", "pos_embed"} <= state.keys():
        positions = state["pos_embed"].float()  # a sum in half precision would be rounded
        state["cls_token"] = state["cls_token"].float() + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state
