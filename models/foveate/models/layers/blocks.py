"""Modules of a plain ViT: attention, MLP, and a block that calls a token reducer."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.checkpoint_options import Activation
from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.reducer import Attention, Needs, Reducer
from foveate.models.layers.rope import Rotation
from foveate.models.layers.tokens import Assignment, Tokens

EXPLICIT_LENGTH = 512
"""Longest sequence, in tokens, for which a CPU computes attention as two matrix products instead of the fused
kernel. For 197 tokens in bfloat16 that is 1.2 to 1.3 times faster, and three times faster in training."""


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: Mapping[Activation, nn.Module] = {
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU(),
    "silu": nn.SiLU(),
}


class SelfAttention(nn.Module):
    """Multi-head attention that also returns the attention information a reducer needs."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        head = config.width // config.heads
        self.q_norm = nn.LayerNorm(head, eps=config.eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head, eps=config.eps) if config.qk_norm else nn.Identity()
        self.norm = nn.LayerNorm(config.width, eps=config.eps) if config.attn_norm else None
        self.proj = nn.Linear(config.width, config.width)

    def forward(
        self,
        x: Tensor,
        needs: Needs | None,
        log_counts: Tensor | None,
        heads: int = 0,
        rotation: Rotation | None = None,
    ) -> tuple[Tensor, Attention]:
        """The attention update (B, N, D) of x (B, N, D), and the attention information in `needs`.

        log_counts: (B, N), added to the scores (proportional attention: ToMe, equation 1), or None.
        heads: number of heads that each token uses; 0: all. rotation: the tokens' rotary positions. A reducer
        gets the keys before they are rotated: they say what a token shows, and not where.
        """
        q, k, v = self._split(self.qkv(x), 3)
        q, k, needs = self.q_norm(q), self.k_norm(k), needs or Needs.NOTHING
        content = k
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        bias = _bias(log_counts, q)
        weights = class_row = None
        if Needs.FULL in needs or (x.device.type == "cpu" and x.shape[1] <= EXPLICIT_LENGTH):
            weights = _softmax(q, k, bias)
            y = torch.matmul(weights, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if Needs.CLASS_ROW in needs:
            row = _softmax(q[:, :, :1].float(), k.float(), bias) if weights is None else weights[:, :, :1]
            class_row = row.squeeze(2).float().mean(1)
        attention = Attention(
            class_row=class_row,
            full=weights if Needs.FULL in needs else None,
            keys=content if Needs.KEYS in needs else None,
            values=v if Needs.VALUES in needs else None,
        )
        if heads:
            y = y * top_heads(q, heads)
        return self._join(y), attention

    def weights(self, x: Tensor, log_counts: Tensor | None, rotation: Rotation | None = None) -> Tensor:
        """Attention weights (B, H, N, N) of x (B, N, D), without the values."""
        end = 2 * x.shape[2]
        bias = None if self.qkv.bias is None else self.qkv.bias[:end]
        q, k = self._split(F.linear(x, self.qkv.weight[:end], bias), 2)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        return _softmax(q, k, _bias(log_counts, q))

    def fused_update(self, x: Tensor, weights: Tensor, assignment: Assignment) -> Tensor:
        """The update of fused tokens x (B, K, D) under the weights (B, H, N, N) of the tokens before fusion.

        MCTF, section 3.3: a fused token's attention row is the mix of its parts' rows, and its attention
        column is their sum. Both are linear. So the values are spread and the updates are mixed instead of
        the weights, which are H times larger.
        """
        start, length = 2 * x.shape[2], weights.shape[-1]
        bias = None if self.qkv.bias is None else self.qkv.bias[start:]
        values = assignment.spread(F.linear(x, self.qkv.weight[start:], bias), length)
        (v,) = self._split(values, 1)
        return self._project(assignment.mix(torch.matmul(weights, v).transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split (B, N, parts * D) into `parts` tensors (B, H, N, d)."""
        batch, length, width = x.shape
        split = x.view(batch, length, parts, self.heads, width // parts // self.heads)
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def _join(self, y: Tensor) -> Tensor:
        """Project the heads' outputs (B, H, N, d) to (B, N, D)."""
        return self._project(y.transpose(1, 2).flatten(2))

    def _project(self, y: Tensor) -> Tensor:
        """Project the heads' outputs, side by side (B, N, D), to (B, N, D)."""
        out: Tensor = self.proj(y if self.norm is None else self.norm(y))
        return out


def _bias(log_counts: Tensor | None, like: Tensor) -> Tensor | None:
    """The bias (B, 1, 1, N) that proportional attention adds to the scores, in the dtype of `like`."""
    return None if log_counts is None else log_counts[:, None, None, :].to(like.dtype)


def _softmax(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Attention weights (B, H, Q, N) of queries q (B, H, Q, d) over keys k (B, H, N, d)."""
    scale = q.shape[-1] ** -0.5
    if bias is None:
        return torch.matmul(q * scale, k.transpose(-2, -1)).softmax(dim=-1)
    # Adding the bias within the product saves one pass over the scores.
    start = bias.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    scores = torch.baddbmm(start, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
    return scores.view(*q.shape[:3], -1).softmax(dim=-1)


def top_heads(q: Tensor, heads: int) -> Tensor:
    """Mask of the `heads` heads in which each token's query (B, H, N, d) is longest: (B, H, N, 1), 0 or 1.

    "MoH: Multi-Head Attention as Mixture-of-Head Attention", section 3.4: a
    router without parameters.
    """
    norms = q.float().norm(dim=-1)
    chosen = norms.topk(heads, dim=1).indices
    return torch.zeros_like(norms).scatter(1, chosen, 1.0).to(q.dtype).unsqueeze(-1)


class Mlp(nn.Module):
    """The feed-forward part of a block: two linear maps with an activation between them.

    A gated one maps to two hidden layers at once, the gate first. The activated gate is multiplied by the
    other ("GLU Variants Improve Transformer", equation 6).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gated = config.gated_mlp
        self.fc1 = nn.Linear(config.width, (2 if self.gated else 1) * config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.eps) if config.mlp_norm else None
        self.act = _ACTIVATIONS[config.activation]
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., D) to features (..., D)."""
        x = self.fc1(x)
        if self.gated:
            gate, x = x.chunk(2, -1)
            x = self.act(gate) * x
        else:
            x = self.act(x)
        out: Tensor = self.fc2(x if self.norm is None else self.norm(x))
        return out


class LayerScale(nn.Module):
    """A learned gain for each channel of a residual branch (CaiT, section 3.1)."""

    def __init__(self, width: int) -> None:
        """width: number of channels."""
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return x * self.gamma


class Block(nn.Module):
    """Attention, then the reducer's assignment, then the MLP on the remaining tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = SelfAttention(config)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, tokens: Tokens, reducer: Reducer, index: int, heads: int = 0) -> Tokens:
        """Tokens after this block.

        index: the block's number, counted from 0. heads: number of heads that each token uses; 0: all.
        """
        needs = reducer.needs(index)
        if needs is not None and reducer.point is ReductionPoint.AHEAD:
            tokens = self._attend_ahead(tokens, reducer, index)
        else:
            tokens = self._attend(tokens, reducer, index, needs, heads)
        return tokens.with_features(tokens.x + self.ls2(self.mlp(self.norm2(tokens.x))))

    def _attend(
        self, tokens: Tokens, reducer: Reducer, index: int, needs: Needs | None, heads: int
    ) -> Tokens:
        if needs is not None and reducer.point is ReductionPoint.BEFORE:
            tokens, needs = tokens.apply(reducer(tokens, Attention(), index)), None
        update, attention = self.attn(
            self.norm1(tokens.x), needs, _log_counts(tokens, reducer), heads, tokens.rotation
        )
        tokens = tokens.with_features(tokens.x + self.ls1(update))
        return tokens if needs is None else tokens.apply(reducer(tokens, attention, index))

    def _attend_ahead(self, tokens: Tokens, reducer: Reducer, index: int) -> Tokens:
        """Reduce with the attention that the unreduced tokens would have, then apply it to the fused ones."""
        weights = self.attn.weights(self.norm1(tokens.x), _log_counts(tokens, reducer), tokens.rotation)
        assignment = reducer(tokens, Attention(full=weights), index)
        tokens = tokens.apply(assignment)
        update = self.attn.fused_update(self.norm1(tokens.x), weights, assignment)
        return tokens.with_features(tokens.x + self.ls1(update))


def _log_counts(tokens: Tokens, reducer: Reducer) -> Tensor | None:
    """Logarithms of the tokens' counts (B, N) for a reducer with proportional attention, else None."""
    return tokens.counts.log() if reducer.proportional else None


class PatchEmbed(nn.Module):
    """A linear map of non-overlapping patches, written as a convolution."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(3, config.width, patch, stride=patch, bias=config.patch_bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to patch features (B, P, D)."""
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out
