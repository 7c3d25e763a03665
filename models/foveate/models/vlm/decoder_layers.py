"""The layers of a decoder on rows of the key/value cache.

The operations are those of transformers' LlamaModel, on its own modules' weights, and in float32 the results
are equal bit by bit. Its forward needs a quarter to a third more time for one token, which it spends between
the operations; it still runs where no cache is used.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.vlm.key_value_cache import CacheRows


def run_layers(model: Any, embedded: Tensor, positions: Tensor, rows: CacheRows) -> Tensor:
    """The last hidden states (B, Q, D) of new tokens behind those in a key/value cache.

    model: a LlamaModel with as many heads for keys as for queries. embedded: (B, Q, D), rows padded at their
    ends. positions: (B, Q). The cache stores the new tokens, and does not count them.
    """
    batch, queries, width = embedded.shape
    heads, eps = model.config.num_attention_heads, model.config.rms_norm_eps
    mask = rows.mask(queries)
    cosines, sines = (wave[:, None] for wave in model.rotary_emb(embedded, positions))
    states = embedded
    for number, layer in enumerate(model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        normed = F.rms_norm(states, (width,), layer.input_layernorm.weight, eps)
        query, key, value = (
            F.linear(normed, part.weight).view(batch, queries, heads, -1).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = (_rotated(each, cosines, sines) for each in (query, key))
        keys, values = rows.extend(number, key, value)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        states = states + F.linear(
            mixed.transpose(1, 2).reshape(batch, queries, width), attention.o_proj.weight
        )
        normed = F.rms_norm(states, (width,), layer.post_attention_layernorm.weight, eps)
        gate, up = F.linear(normed, mlp.gate_proj.weight), F.linear(normed, mlp.up_proj.weight)
        states = states + F.linear(F.silu(gate) * up, mlp.down_proj.weight)
    return F.rms_norm(states, (width,), model.norm.weight, eps)


def _rotated(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Vectors (B, H, Q, d) with their positions ("RoFormer", arXiv 2104.09864, section 3.4.2), as in Llama:
    number i is paired with number i + d / 2."""
    first, second = vectors.chunk(2, -1)
    return vectors * cosines + torch.cat([-second, first], -1) * sines
