"""The elastic trunk: a plain ViT whose parameters carry timm's names, run under a plan.

"An Image is Worth 16x16 Words" (ICLR 2021); distillation token from DeiT, registers from "Vision
Transformers Need Registers", layer scale from CaiT, norm before the blocks from CLIP.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.exits import ExitRule
from foveate.models.geometry import Activation, Geometry
from foveate.models.reduction import Attention, Needs, Reducer
from foveate.models.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Steps:
    """A plan made concrete for one trunk: what happens at each block."""

    reducer: Reducer
    depth: int
    exit_rule: ExitRule | None = None


@dataclass(frozen=True, slots=True)
class TrunkOutput:
    """What one forward gives, rows in the order of the input."""

    logits: Tensor
    """(B, C) class scores, or (B, D) pooled features where the model has no classifier."""
    exit_layer: Tensor
    """(B,) int64: blocks each sample went through."""
    tokens: Tensor
    """(B,) int64: tokens each sample still had when it left, prefix included."""


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

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.heads = g.heads
        self.qkv = nn.Linear(g.width, 3 * g.width, bias=g.qkv_bias)
        head = g.width // g.heads
        self.q_norm = nn.LayerNorm(head, eps=g.eps) if g.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head, eps=g.eps) if g.qk_norm else nn.Identity()
        self.proj = nn.Linear(g.width, g.width)

    def forward(self, x: Tensor, needs: Needs | None, log_counts: Tensor | None) -> tuple[Tensor, Attention]:
        """x: (B, N, D); log_counts: (B, N) or None, added to the scores (ToMe, equation 1)."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        bias = None if log_counts is None else log_counts[:, None, None, :].to(q.dtype)
        attention = Attention()
        if needs is Needs.FULL or (x.device.type == "cpu" and length <= EXPLICIT_LENGTH):
            weights = _softmax(q, k, bias)
            y = torch.matmul(weights, v)
            if needs is Needs.CLASS_ROW:
                attention = Attention(class_row=weights[:, :, 0].float().mean(1))
            elif needs is Needs.FULL:
                attention = Attention(full=weights)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            if needs is Needs.CLASS_ROW:
                row = _softmax(q[:, :, :1].float(), k.float(), bias)
                attention = Attention(class_row=row.squeeze(2).mean(1))
        return self.proj(y.transpose(1, 2).reshape(batch, length, width)), attention


def _softmax(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Attention weights (B, H, Q, N) of the given queries."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    return (scores if bias is None else scores + bias).softmax(dim=-1)


class Mlp(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.fc1 = nn.Linear(g.width, g.hidden)
        self.act = _ACTIVATIONS[g.activation]
        self.fc2 = nn.Linear(g.hidden, g.width)

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

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(g.width, eps=g.eps)
        self.attn = SelfAttention(g)
        self.ls1 = LayerScale(g.width) if g.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(g.width, eps=g.eps)
        self.mlp = Mlp(g)
        self.ls2 = LayerScale(g.width) if g.layer_scale else nn.Identity()

    def forward(self, tokens: Tokens, reducer: Reducer, index: int) -> Tokens:
        needs = reducer.needs(index)
        log_counts = tokens.counts.log() if reducer.proportional else None
        update, attention = self.attn(self.norm1(tokens.x), needs, log_counts)
        tokens = tokens.with_features(tokens.x + self.ls1(update))
        if needs is not None:
            tokens = tokens.apply(reducer(tokens, attention, index))
        return tokens.with_features(tokens.x + self.ls2(self.mlp(self.norm2(tokens.x))))


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one linear map, written as a convolution."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, g.width, g.patch_size, stride=g.patch_size, bias=g.patch_bias)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out


class ElasticViT(nn.Module):
    """A vision transformer that runs under a plan. At full its output is timm's to float error."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        g = self.geometry = geometry
        self.patch_embed = PatchEmbed(g)
        if g.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, g.width))
        if g.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, g.width))
        if g.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, g.registers, g.width))
        positions = g.patches(g.image_size) + (g.prefix if g.embed_prefix else 0)
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, g.width))
        self.norm_pre = nn.LayerNorm(g.width, eps=g.eps) if g.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(g) for _ in range(g.depth))
        self.norm = nn.LayerNorm(g.width, eps=g.eps) if g.final_norm else nn.Identity()
        self.fc_norm = nn.LayerNorm(g.width, eps=g.eps) if g.fc_norm else nn.Identity()
        self.head = nn.Linear(g.width, g.classes) if g.classes else nn.Identity()
        if g.distilled:
            self.head_dist = nn.Linear(g.width, g.classes) if g.classes else nn.Identity()
        self.exit_heads = nn.ModuleDict()
        """Heads by the number of blocks before them, as text; each maps (B, N, D) tokens to logits."""

    def embed(self, images: Tensor) -> Tokens:
        """Normalised images (B, 3, S, S) to tokens; positions are interpolated at other sizes."""
        g = self.geometry
        patches = self.patch_embed(images)
        names = (
            ["cls_token"] * g.class_token + ["dist_token"] * g.distilled + ["reg_token"] * bool(g.registers)
        )
        prefix = [getattr(self, name).expand(len(images), -1, -1) for name in names]
        positions = self.positions(images.shape[-1] // g.patch_size)
        if g.embed_prefix:
            x = torch.cat([*prefix, patches], dim=1) + positions
        else:
            x = torch.cat([*prefix, patches + positions], dim=1)
        return Tokens.start(self.norm_pre(x), g.prefix)

    def positions(self, side: int) -> Tensor:
        """Position embeddings for a grid of side x side patches: (1, N, D)."""
        g = self.geometry
        own = g.image_size // g.patch_size
        if side == own:
            return self.pos_embed
        prefix = g.prefix if g.embed_prefix else 0
        head, grid = self.pos_embed[:, :prefix], self.pos_embed[:, prefix:]
        grid = grid.float().reshape(1, own, own, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
        grid = grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)
        return torch.cat([head, grid.to(head.dtype)], dim=1)

    def forward(self, images: Tensor, steps: Steps) -> TrunkOutput:
        """Run normalised images (B, 3, S, S) under the steps of a plan."""
        return self.encode(self.embed(images), steps)

    def encode(self, tokens: Tokens, steps: Steps) -> TrunkOutput:
        """Blocks, reducer and exits. A sample leaves when its own exit says so; the others go on.

        A depth cap ends in the exit head of its block where there is one, else in the final classifier.
        """
        rows = torch.arange(tokens.x.shape[0], device=tokens.x.device)
        left: list[tuple[Tensor, Tensor, int, int]] = []
        for index in range(steps.depth):
            tokens = self.blocks[index](tokens, steps.reducer, index)
            name = str(index + 1)
            capped = index + 1 == steps.depth < self.geometry.depth
            if name not in self.exit_heads or not (capped or steps.exit_rule):
                continue
            logits = self.exit_heads[name](tokens.x)
            leaves = steps.exit_rule(logits) if steps.exit_rule and not capped else rows >= 0
            left.append((rows[leaves], logits[leaves], index + 1, len(tokens)))
            rows, tokens = rows[~leaves], tokens.rows((~leaves).nonzero().squeeze(1))
            if not len(rows):
                break
        if len(rows):
            left.append((rows, self.classify(tokens.x), steps.depth, len(tokens)))
        return _in_order(left)

    def classify(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) after the last block to logits (B, C), or to pooled features without a head."""
        g = self.geometry
        x = self.norm(x)
        pooled = x[:, g.prefix :].mean(1) if g.pool == "avg" else x[:, 0]
        logits: Tensor = self.head(self.fc_norm(pooled))
        if g.distilled:
            logits = (logits + self.head_dist(x[:, 1])) / 2
        return logits


def _in_order(left: list[tuple[Tensor, Tensor, int, int]]) -> TrunkOutput:
    """Put the groups that left after different blocks back into the order of the batch."""
    rows = torch.cat([group[0] for group in left])
    logits = torch.cat([group[1] for group in left])
    layers = torch.cat([torch.full_like(r, layer) for r, _, layer, _ in left])
    counts = torch.cat([torch.full_like(r, count) for r, _, _, count in left])
    order = rows.argsort()
    return TrunkOutput(logits[order], layers[order], counts[order])
