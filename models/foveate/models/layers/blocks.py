"""What a plain ViT is made of: attention, MLP, the block around them that lets a reducer act."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers.config import Activation, ReductionPoint, ViTConfig
from foveate.models.layers.reducer import Attention, Needs, Reducer
from foveate.models.layers.tokens import Assignment, Tokens

EXPLICIT_LENGTH = 512
"""On a CPU, sequences up to this long take two plain matrix products instead of the fused kernel: for
197 tokens in bfloat16 that is 1.2 to 1.3 times faster, and three times faster in training."""


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: Mapping[Activation, nn.Module] = {
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU(),
}


class SelfAttention(nn.Module):
    """Multi-head attention that also gives the attention information a reducer asked for."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        head = config.width // config.heads
        self.q_norm = nn.LayerNorm(head, eps=config.eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head, eps=config.eps) if config.qk_norm else nn.Identity()
        self.proj = nn.Linear(config.width, config.width)

    def forward(
        self, x: Tensor, needs: Needs | None, log_counts: Tensor | None, heads: int = 0
    ) -> tuple[Tensor, Attention]:
        """x: (B, N, D); log_counts: (B, N) or None, added to the scores (ToMe, equation 1)."""
        q, k, v = self._split(self.qkv(x), 3)
        q, k, needs = self.q_norm(q), self.k_norm(k), needs or Needs.NOTHING
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
        seen = Attention(
            class_row=class_row,
            full=weights if Needs.FULL in needs else None,
            keys=k if Needs.KEYS in needs else None,
            values=v if Needs.VALUES in needs else None,
        )
        if heads:
            y = y * top_heads(q, heads)
        return self._join(y), seen

    def ahead(self, x: Tensor, log_counts: Tensor | None) -> Tensor:
        """Attention weights (B, H, N, N) alone, before the values are needed."""
        end = 2 * x.shape[2]
        bias = None if self.qkv.bias is None else self.qkv.bias[:end]
        q, k = self._split(F.linear(x, self.qkv.weight[:end], bias), 2)
        q, k = self.q_norm(q), self.k_norm(k)
        return _softmax(q, k, _bias(log_counts, q))

    def mix(self, x: Tensor, weights: Tensor, decided: Assignment) -> Tensor:
        """The update of tokens (B, K, D) under the weights (B, H, N, N) of those they were fused from.

        MCTF, section 3.3: what a fused token attends to is mixed like its features, and what it receives
        adds up. Both are linear, so values are spread and updates mixed, not the H times larger weights.
        """
        start, length = 2 * x.shape[2], weights.shape[-1]
        bias = None if self.qkv.bias is None else self.qkv.bias[start:]
        values = decided.spread(F.linear(x, self.qkv.weight[start:], bias), length)
        (v,) = self._split(values, 1)
        out: Tensor = self.proj(decided.mix(torch.matmul(weights, v).transpose(1, 2).flatten(2)))
        return out

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, N, parts * D) to that many times (B, H, N, d)."""
        batch, length, width = x.shape
        split = x.view(batch, length, parts, self.heads, width // parts // self.heads)
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def _join(self, y: Tensor) -> Tensor:
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


def _bias(log_counts: Tensor | None, like: Tensor) -> Tensor | None:
    return None if log_counts is None else log_counts[:, None, None, :].to(like.dtype)


def _softmax(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Attention weights (B, H, Q, N) of the given queries."""
    scale = q.shape[-1] ** -0.5
    if bias is None:
        return torch.matmul(q * scale, k.transpose(-2, -1)).softmax(dim=-1)
    # Adding the bias within the product saves a pass over the scores.
    start = bias.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    scores = torch.baddbmm(start, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
    return scores.view(*q.shape[:3], -1).softmax(dim=-1)


def top_heads(q: Tensor, heads: int) -> Tensor:
    """Which heads each token uses: those where its query (B, H, N, d) is longest. (B, H, N, 1) of 0 and 1.

    "MoH: Multi-Head Attention as Mixture-of-Head Attention", section 3.4: the parameter-free router.
    """
    norms = q.float().norm(dim=-1)
    chosen = norms.topk(heads, dim=1).indices
    return torch.zeros_like(norms).scatter(1, chosen, 1.0).to(q.dtype).unsqueeze(-1)


class Mlp(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.act = _ACTIVATIONS[config.activation]
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A learned gain a channel on a residual branch (CaiT, section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention, then the reducer's decision, then the MLP on what is left."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = SelfAttention(config)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, tokens: Tokens, reducer: Reducer, index: int, heads: int = 0) -> Tokens:
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
        update, attention = self.attn(self.norm1(tokens.x), needs, _log_counts(tokens, reducer), heads)
        tokens = tokens.with_features(tokens.x + self.ls1(update))
        return tokens if needs is None else tokens.apply(reducer(tokens, attention, index))

    def _attend_ahead(self, tokens: Tokens, reducer: Reducer, index: int) -> Tokens:
        weights = self.attn.ahead(self.norm1(tokens.x), _log_counts(tokens, reducer))
        decided = reducer(tokens, Attention(full=weights), index)
        tokens = tokens.apply(decided)
        update = self.attn.mix(self.norm1(tokens.x), weights, decided)
        return tokens.with_features(tokens.x + self.ls1(update))


def _log_counts(tokens: Tokens, reducer: Reducer) -> Tensor | None:
    return tokens.counts.log() if reducer.proportional else None


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one linear map, written as a convolution."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            3, config.width, config.patch_size, stride=config.patch_size, bias=config.patch_bias
        )

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out
