"""The elastic trunk: a plain ViT with timm's parameter names that runs under a plan.

"An Image is Worth 16x16 Words" (ICLR 2021); distillation token from DeiT, registers from "Vision
Transformers Need Registers", layer scale from CaiT, norm before the blocks from CLIP, rotary positions, gated
MLPs and norms within a block from EVA-02 and DINOv3, attention pooling from SigLIP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.exits import ExitRule
from foveate.models.heads import ExitSpec
from foveate.models.heads.clip import ClipHead, ClipSpec
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.heads.exits import build as build_exit
from foveate.models.heads.gates import Gate
from foveate.models.layers.attention_pool import AttentionPool
from foveate.models.layers.blocks import Block, PatchEmbed
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Reducer, Schedule
from foveate.models.layers.rope import Rotation, initial_rotation
from foveate.models.layers.tokens import Tokens


@dataclass(frozen=True, slots=True)
class ResolvedPlan:
    """A plan resolved for one trunk: the work of each block."""

    reducer: Reducer
    depth: int
    """Number of blocks that run."""
    exit_rule: ExitRule | None = None
    """None: samples leave only at the end."""
    heads: int = 0
    """Heads that each token uses in every block; 0: all."""


@dataclass(frozen=True, slots=True)
class TrunkOutput:
    """The result of one forward pass, rows in the order of the input."""

    logits: Tensor
    """(B, C) class scores, or (B, E) embeddings for a model without a classifier."""
    exit_layer: Tensor
    """(B,) int64: number of blocks that each sample went through."""
    tokens: Tensor
    """(B,) int64: number of tokens of each sample when it left, prefix included."""
    after: Tensor | None = None
    """(B, depth) int64, for a reducer whose count differs between images: tokens of each sample after each
    block, 0 after its exit."""


@dataclass(frozen=True, slots=True)
class ExitedSamples:
    """The samples that leave after the same block."""

    rows: Tensor
    """(B',) int64: their positions in the batch."""
    logits: Tensor
    """(B', C)."""
    layer: int
    """Number of blocks that they went through."""
    tokens: Tensor
    """(B',) int64: their tokens, padding left out."""
    after: Tensor | None = None
    """(B', layer) int64: their tokens after each block, for an adaptive reducer."""


Recorder = Callable[[Tensor, int, Tokens], None]
"""A callback after each block. It gets the batch rows (B',) that ran the block, the number of blocks so far,
and the rows' tokens."""


class ElasticViT(nn.Module):
    """A vision transformer that runs under a plan. At full compute its output is timm's to float error."""

    def __init__(
        self,
        config: ViTConfig,
        exits: Sequence[ExitSpec] = (),
        gates: Sequence[int] = (),
        dense: DenseSpec | None = None,
        clip: ClipSpec | None = None,
    ) -> None:
        """exits: the exit heads. gates: for each token gate, the number of blocks before it."""
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width))
        positions = config.patches(config.image_size) + (config.prefix if config.embed_prefix else 0)
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, config.width)) if config.pos_embed else None
        self.norm_pre = _norm(config, config.pre_norm)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = _norm(config, config.final_norm)
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.fc_norm = _norm(config, config.fc_norm)
        self.head = _classifier(config)
        if config.distilled:
            self.head_dist = _classifier(config)
        self.exit_heads = nn.ModuleDict({str(spec.after): build_exit(config, spec) for spec in exits})
        """Exit heads. The key is the number of blocks before the head, as text. Each maps Tokens to logits
        (B, C)."""
        self.gates = nn.ModuleDict({str(after): Gate(config.width) for after in gates})
        """Token gates. The key is the number of blocks before the gate, as text. Each maps (B, N, D) to
        scores (B, N - prefix)."""
        self.schedules: Mapping[str, Schedule] = {}
        """DiffRate schedules that were searched for this model, by name."""
        self.dense = DenseHead(config, dense) if dense else None
        """Classifies pixels; None for a model without a dense head."""
        self.clip = ClipHead(config, clip) if clip else None
        """Classifies video clips; None for a model of images."""

    def embed(self, images: Tensor) -> Tokens:
        """Normalised images (B, 3, S, S) to tokens. At other sizes, position embeddings are interpolated."""
        config = self.config
        patches = self.patch_embed(images)
        prefix_tokens = {
            "cls_token": config.class_token,
            "dist_token": config.distilled,
            "reg_token": config.registers,
        }
        prefix = [
            getattr(self, name).expand(len(images), -1, -1) for name, used in prefix_tokens.items() if used
        ]
        side = self.side(images)
        if not config.pos_embed:
            x = torch.cat([*prefix, patches], dim=1)
        elif config.embed_prefix:
            x = torch.cat([*prefix, patches], dim=1) + self.positions(side)
        else:
            x = torch.cat([*prefix, patches + self.positions(side)], dim=1)
        return Tokens.start(self.norm_pre(x), config.prefix, self.rotation(side, x))

    def side(self, images: Tensor) -> int:
        """Rows of patches of images (B, 3, S, S)."""
        return images.shape[-1] // self.config.patch_size

    def rotation(self, side: int, like: Tensor) -> Rotation | None:
        """Rotary positions of the tokens of a grid of side x side patches, on the device of `like`.

        None for a model without them.
        """
        if self.config.rope == "none":
            return None
        return initial_rotation(self.config, side, like.device, like.dtype)

    def positions(self, side: int) -> Tensor:
        """Position embeddings for a grid of side x side patches: (1, N, D).

        Raises ValueError for a model that has none.
        """
        config = self.config
        if self.pos_embed is None:
            raise ValueError("the model has no learned position embeddings")
        own_side = config.image_size // config.patch_size
        if side == own_side:
            return self.pos_embed
        prefix = config.prefix if config.embed_prefix else 0
        head, grid = self.pos_embed[:, :prefix], self.pos_embed[:, prefix:]
        grid = grid.float().reshape(1, own_side, own_side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
        grid = grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)
        return torch.cat([head, grid.to(head.dtype)], dim=1)

    def forward(self, images: Tensor, resolved: ResolvedPlan) -> TrunkOutput:
        """Run normalised images (B, 3, S, S) under a resolved plan."""
        return self.encode(self.embed(images), resolved)

    def encode(
        self, tokens: Tokens, resolved: ResolvedPlan, record: Recorder | None = None, start: int = 0
    ) -> TrunkOutput:
        """Run the blocks from `start` on, with reducer and exits. A sample leaves when its own exit says so.

        A depth cap ends in the exit head of its block if there is one, else in the final classifier.
        """
        rows = torch.arange(tokens.x.shape[0], device=tokens.x.device)
        exited: list[ExitedSamples] = []
        logits: list[Tensor] = []
        after: list[Tensor] = []
        for index in range(start, resolved.depth):
            tokens = self.blocks[index](tokens, resolved.reducer, index, resolved.heads)
            if record is not None:
                record(rows, index + 1, tokens)
            if resolved.reducer.adaptive:
                after.append(tokens.present)
            name, last = str(index + 1), index + 1 == resolved.depth
            if name not in self.exit_heads or not (last or resolved.exit_rule):
                continue
            logits.append(self.exit_heads[name](tokens))
            leaves = resolved.exit_rule(logits) if resolved.exit_rule and not last else rows >= 0
            leaving, staying = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
            counts = [count[leaving] for count in after]
            exited.append(
                _exited(tokens.rows(leaving), rows[leaving], logits[-1][leaving], index + 1, counts)
            )
            rows, tokens = rows[staying], tokens.rows(staying)
            logits, after = [each[staying] for each in logits], [count[staying] for count in after]
            if not len(rows):
                return _in_batch_order(exited)
        return _in_batch_order([*exited, _exited(tokens, rows, self.classify(tokens), resolved.depth, after)])

    def classify(self, tokens: Tokens) -> Tensor:
        """Tokens after the last block to logits (B, C), or to embeddings (B, E) without a classifier."""
        config = self.config
        x = self.norm(tokens.x)
        if self.attn_pool is not None:
            first = 0 if config.pool_prefix else config.prefix
            pooled = self.attn_pool(x[:, first:], tokens.counts[:, first:])
        elif config.pool == "token":
            pooled = x[:, 0]
        else:
            # Weighted by the number of patches that each token represents, so merging keeps the mean.
            weight = tokens.counts[:, config.prefix :, None]
            pooled = ((x[:, config.prefix :] * weight).sum(1) / weight.sum(1)).to(x.dtype)
            if config.pool == "token_avg":
                pooled = torch.cat([x[:, 0], pooled], dim=1)
        logits: Tensor = self.head(self.fc_norm(pooled))
        if config.distilled:
            logits = (logits + self.head_dist(x[:, 1])) / 2
        return logits


def _norm(config: ViTConfig, used: bool) -> nn.Module:
    """A norm of the trunk's width, or the identity."""
    return nn.LayerNorm(config.width, eps=config.eps) if used else nn.Identity()


def _classifier(config: ViTConfig) -> nn.Module:
    """A linear classifier; for a model without classes, the projection to its embedding, or the identity."""
    if config.classes:
        return nn.Linear(config.pooled, config.classes)
    if config.projection:
        return nn.Linear(config.pooled, config.projection, bias=config.projection_bias)
    return nn.Identity()


def _exited(
    tokens: Tokens, rows: Tensor, logits: Tensor, layer: int, after: Sequence[Tensor]
) -> ExitedSamples:
    """The record of samples that leave after `layer` blocks. after: their token counts after each block."""
    return ExitedSamples(rows, logits, layer, tokens.present, torch.stack(list(after), 1) if after else None)


def _in_batch_order(exited: Sequence[ExitedSamples]) -> TrunkOutput:
    """Join groups that left after different blocks, in the order of the batch."""
    order = torch.cat([group.rows for group in exited]).argsort()
    logits = torch.cat([group.logits for group in exited])
    layers = torch.cat([torch.full_like(group.rows, group.layer) for group in exited])
    tokens = torch.cat([group.tokens for group in exited])
    histories = [group.after for group in exited if group.after is not None]
    after = None
    if histories:
        depth = max(history.shape[1] for history in histories)
        after = torch.cat([F.pad(history, (0, depth - history.shape[1])) for history in histories])[order]
    return TrunkOutput(logits[order], layers[order], tokens[order], after)
