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
from foveate.models.heads import ExitSpec
from foveate.models.heads.clip import ClipHead, ClipSpec
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.heads.exits import build as build_exit
from foveate.models.heads.gates import Gate
from foveate.models.layers.blocks import Block, PatchEmbed
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Reducer, Schedule
from foveate.models.layers.tokens import Tokens


@dataclass(frozen=True, slots=True)
class ResolvedPlan:
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
class ExitedSamples:
    """The samples that leave together, after the same block."""

    rows: Tensor
    logits: Tensor
    layer: int
    tokens: Tensor
    after: Tensor | None = None


Recorder = Callable[[Tensor, int, Tokens], None]
"""Told after each block: which rows of the batch (B',) went through it, blocks so far, their tokens."""


class ElasticViT(nn.Module):
    """A vision transformer that runs under a plan. At full its output is timm's to float error."""

    def __init__(
        self,
        config: ViTConfig,
        exits: Sequence[ExitSpec] = (),
        gates: Sequence[int] = (),
        dense: DenseSpec | None = None,
        clip: ClipSpec | None = None,
    ) -> None:
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
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, config.width))
        self.norm_pre = nn.LayerNorm(config.width, eps=config.eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps) if config.final_norm else nn.Identity()
        self.fc_norm = nn.LayerNorm(config.width, eps=config.eps) if config.fc_norm else nn.Identity()
        self.head = nn.Linear(config.width, config.classes) if config.classes else nn.Identity()
        if config.distilled:
            self.head_dist = nn.Linear(config.width, config.classes) if config.classes else nn.Identity()
        self.exit_heads = nn.ModuleDict({str(spec.after): build_exit(config, spec) for spec in exits})
        """Heads by the number of blocks before them, as text; each maps Tokens to logits (B, C)."""
        self.gates = nn.ModuleDict({str(after): Gate(config.width) for after in gates})
        """Token gates by the number of blocks before them, as text; each maps (B, N, D) to scores (B, N)."""
        self.schedules: Mapping[str, Schedule] = {}
        self.dense = DenseHead(config, dense) if dense else None
        """Names pixels; None in a model that names whole pictures alone."""
        self.clip = ClipHead(config, clip) if clip else None
        """Names what happens in clips; None in a model that names pictures."""

    def embed(self, images: Tensor) -> Tokens:
        """Normalised images (B, 3, S, S) to tokens; positions are interpolated at other sizes."""
        config = self.config
        patches = self.patch_embed(images)
        names = (
            ["cls_token"] * config.class_token
            + ["dist_token"] * config.distilled
            + ["reg_token"] * bool(config.registers)
        )
        prefix = [getattr(self, name).expand(len(images), -1, -1) for name in names]
        positions = self.positions(images.shape[-1] // config.patch_size)
        if config.embed_prefix:
            x = torch.cat([*prefix, patches], dim=1) + positions
        else:
            x = torch.cat([*prefix, patches + positions], dim=1)
        return Tokens.start(self.norm_pre(x), config.prefix)

    def positions(self, side: int) -> Tensor:
        """Position embeddings for a grid of side x side patches: (1, N, D)."""
        config = self.config
        own = config.image_size // config.patch_size
        if side == own:
            return self.pos_embed
        prefix = config.prefix if config.embed_prefix else 0
        head, grid = self.pos_embed[:, :prefix], self.pos_embed[:, prefix:]
        grid = grid.float().reshape(1, own, own, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
        grid = grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)
        return torch.cat([head, grid.to(head.dtype)], dim=1)

    def forward(self, images: Tensor, steps: ResolvedPlan) -> TrunkOutput:
        """Run normalised images (B, 3, S, S) under the steps of a plan."""
        return self.encode(self.embed(images), steps)

    def encode(
        self, tokens: Tokens, steps: ResolvedPlan, record: Recorder | None = None, start: int = 0
    ) -> TrunkOutput:
        """Blocks from `start` on, reducer and exits. A sample leaves when its own exit says so.

        A depth cap ends in the exit head of its block where there is one, else in the final classifier.
        """
        rows = torch.arange(tokens.x.shape[0], device=tokens.x.device)
        left: list[ExitedSamples] = []
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
        config = self.config
        x = self.norm(tokens.x)
        if config.pool == "avg":
            # Weighted by what each token stands for: the mean over patches, whatever was merged.
            weight = tokens.counts[:, config.prefix :, None]
            pooled = ((x[:, config.prefix :] * weight).sum(1) / weight.sum(1)).to(x.dtype)
        else:
            pooled = x[:, 0]
        logits: Tensor = self.head(self.fc_norm(pooled))
        if config.distilled:
            logits = (logits + self.head_dist(x[:, 1])) / 2
        return logits


def _left(tokens: Tokens, rows: Tensor, logits: Tensor, layer: int, after: Sequence[Tensor]) -> ExitedSamples:
    return ExitedSamples(rows, logits, layer, tokens.present, torch.stack(list(after), 1) if after else None)


def _in_order(left: Sequence[ExitedSamples]) -> TrunkOutput:
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
