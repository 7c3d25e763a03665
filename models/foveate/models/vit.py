"""The elastic trunk: a plain ViT whose parameters carry timm's names, run under a plan.

"An Image is Worth 16x16 Words" (ICLR 2021); distillation token from DeiT, registers from "Vision
Transformers Need Registers", layer scale from CaiT, norm before the blocks from CLIP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.exits import ExitRule
from foveate.models.geometry import Activation, Geometry, Place
from foveate.models.heads import ExitSpec
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.heads.exits import build as build_exit
from foveate.models.heads.gates import Gate
from foveate.models.reduction import Attention, Needs, Reducer, Schedule
from foveate.models.tokens import Assignment, Tokens


@dataclass(frozen=True, slots=True)
class Steps:
    """A plan made concrete for one trunk: what happens at each block."""

    reducer: Reducer
    depth: int
    exit_rule: ExitRule | None = None
    heads: int = 0
    """Heads each token uses of every block's; 0: all."""


@dataclass(frozen=True, slots=True)
class TrunkOutput:
    """What one forward gives, rows in the order of the input."""

    logits: Tensor
    """(B, C) class scores, or (B, D) pooled features where the model has no classifier."""
    exit_layer: Tensor
    """(B,) int64: blocks each sample went through."""
    tokens: Tensor
    """(B,) int64: tokens each sample still had when it left, prefix included."""
    after: Tensor | None = None
    """(B, depth) int64, from a reducer whose count differs from picture to picture: tokens each sample
    had after each block, 0 past its exit."""


@dataclass(frozen=True, slots=True)
class Left:
    """The samples that leave together, after the same block."""

    rows: Tensor
    logits: Tensor
    layer: int
    tokens: Tensor
    after: Tensor | None = None


Recorder = Callable[[Tensor, int, Tokens], None]
"""Told after each block: which rows of the batch (B',) went through it, blocks so far, their tokens."""

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
            y = y * loudest(q, heads)
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


def loudest(q: Tensor, heads: int) -> Tensor:
    """Which heads each token uses: those where its query (B, H, N, d) is longest. (B, H, N, 1) of 0 and 1.

    "MoH: Multi-Head Attention as Mixture-of-Head Attention", section 3.4: the parameter-free router.
    """
    norms = q.float().norm(dim=-1)
    chosen = norms.topk(heads, dim=1).indices
    return torch.zeros_like(norms).scatter(1, chosen, 1.0).to(q.dtype).unsqueeze(-1)


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

    def forward(self, tokens: Tokens, reducer: Reducer, index: int, heads: int = 0) -> Tokens:
        needs = reducer.needs(index)
        if needs is not None and reducer.place is Place.AHEAD:
            tokens = self._attend_ahead(tokens, reducer, index)
        else:
            tokens = self._attend(tokens, reducer, index, needs, heads)
        return tokens.with_features(tokens.x + self.ls2(self.mlp(self.norm2(tokens.x))))

    def _attend(
        self, tokens: Tokens, reducer: Reducer, index: int, needs: Needs | None, heads: int
    ) -> Tokens:
        if needs is not None and reducer.place is Place.BEFORE:
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

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, g.width, g.patch_size, stride=g.patch_size, bias=g.patch_bias)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out


class ElasticViT(nn.Module):
    """A vision transformer that runs under a plan. At full its output is timm's to float error."""

    def __init__(
        self,
        geometry: Geometry,
        exits: Sequence[ExitSpec] = (),
        gates: Sequence[int] = (),
        dense: DenseSpec | None = None,
    ) -> None:
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
        self.exit_heads = nn.ModuleDict({str(spec.after): build_exit(g, spec) for spec in exits})
        """Heads by the number of blocks before them, as text; each maps Tokens to logits (B, C)."""
        self.gates = nn.ModuleDict({str(after): Gate(g.width) for after in gates})
        """Token gates by the number of blocks before them, as text; each maps (B, N, D) to scores (B, N)."""
        self.schedules: Mapping[str, Schedule] = {}
        self.dense = DenseHead(g, dense) if dense else None
        """Names pixels; None in a model that names whole pictures alone."""

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

    def encode(
        self, tokens: Tokens, steps: Steps, record: Recorder | None = None, start: int = 0
    ) -> TrunkOutput:
        """Blocks from `start` on, reducer and exits. A sample leaves when its own exit says so.

        A depth cap ends in the exit head of its block where there is one, else in the final classifier.
        """
        rows = torch.arange(tokens.x.shape[0], device=tokens.x.device)
        left: list[Left] = []
        answers: list[Tensor] = []
        after: list[Tensor] = []
        for index in range(start, steps.depth):
            tokens = self.blocks[index](tokens, steps.reducer, index, steps.heads)
            if record is not None:
                record(rows, index + 1, tokens)
            if steps.reducer.adaptive:
                after.append(tokens.present)
            name, last = str(index + 1), index + 1 == steps.depth
            if name not in self.exit_heads or not (last or steps.exit_rule):
                continue
            answers.append(self.exit_heads[name](tokens))
            leaves = steps.exit_rule(answers) if steps.exit_rule and not last else rows >= 0
            gone, stay = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
            history = [counts[gone] for counts in after]
            left.append(_left(tokens.rows(gone), rows[gone], answers[-1][gone], index + 1, history))
            rows, tokens = rows[stay], tokens.rows(stay)
            answers, after = [a[stay] for a in answers], [counts[stay] for counts in after]
            if not len(rows):
                return _in_order(left)
        return _in_order([*left, _left(tokens, rows, self.classify(tokens), steps.depth, after)])

    def classify(self, tokens: Tokens) -> Tensor:
        """Tokens after the last block to logits (B, C), or to pooled features without a head."""
        g = self.geometry
        x = self.norm(tokens.x)
        if g.pool == "avg":
            # Weighted by what each token stands for: the mean over patches, whatever was merged.
            weight = tokens.counts[:, g.prefix :, None]
            pooled = ((x[:, g.prefix :] * weight).sum(1) / weight.sum(1)).to(x.dtype)
        else:
            pooled = x[:, 0]
        logits: Tensor = self.head(self.fc_norm(pooled))
        if g.distilled:
            logits = (logits + self.head_dist(x[:, 1])) / 2
        return logits


def _left(tokens: Tokens, rows: Tensor, logits: Tensor, layer: int, after: Sequence[Tensor]) -> Left:
    return Left(rows, logits, layer, tokens.present, torch.stack(list(after), 1) if after else None)


def _in_order(left: Sequence[Left]) -> TrunkOutput:
    """Put the groups that left after different blocks back into the order of the batch."""
    order = torch.cat([group.rows for group in left]).argsort()
    logits = torch.cat([group.logits for group in left])
    layers = torch.cat([torch.full_like(group.rows, group.layer) for group in left])
    tokens = torch.cat([group.tokens for group in left])
    histories = [group.after for group in left if group.after is not None]
    after = None
    if histories:
        depth = max(history.shape[1] for history in histories)
        after = torch.cat([F.pad(history, (0, depth - history.shape[1])) for history in histories])[order]
    return TrunkOutput(logits[order], layers[order], tokens[order], after)
