"""The token state that flows through the trunk, and the assignment that moves it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a reducer decided, as indices only; `Tokens.apply` moves features, counts and source map by it.

    Prefix tokens (class, distillation, registers) must be among the kept ones, first and in order.
    """

    kept: Tensor
    """(B, K) int64: positions of the tokens that survive, in their new order."""
    absorbed: Tensor | None = None
    """(B, M) int64: positions of the tokens that are fused into one new token, placed last."""
    weight: Tensor | None = None
    """(B, M): weight of each absorbed token in the sum that makes the new token."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Features and what each of them stands for."""

    x: Tensor
    """(B, N, D) features, prefix tokens first."""
    counts: Tensor
    """(B, N) float32: how many input tokens each token stands for (proportional attention reads it)."""
    source: Tensor
    """(B, P) int64: for each patch, the position of the token that now represents it, -1 once dropped."""
    prefix: int
    """Number of prefix tokens, which no reducer may touch."""

    @classmethod
    def start(cls, x: Tensor, prefix: int) -> "Tokens":
        """The state before any reduction: every token stands for itself. x: (B, prefix + P, D)."""
        batch, length, _ = x.shape
        counts = torch.ones((), device=x.device).expand(batch, length)
        source = torch.arange(prefix, length, device=x.device).expand(batch, -1)
        return cls(x, counts, source, prefix)

    def __len__(self) -> int:
        return self.x.shape[1]

    def with_features(self, x: Tensor) -> "Tokens":
        """The same tokens with new features of the same shape."""
        return replace(self, x=x)

    def rows(self, index: Tensor) -> "Tokens":
        """Only the samples in `index` (B',): how a batch is compacted behind an exit."""
        return Tokens(self.x[index], self.counts[index], self.source[index], self.prefix)

    def apply(self, assignment: Assignment) -> "Tokens":
        """Move features, counts and source map as the assignment says."""
        kept = assignment.kept
        x, counts = _gather(self.x, kept), self.counts.gather(1, kept)
        slots = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        lookup = torch.full_like(self.counts, -1, dtype=torch.int64).scatter(1, kept, slots)
        if assignment.absorbed is not None and assignment.absorbed.shape[1] > 0:
            absorbed, weight = assignment.absorbed, assignment.weight
            rest = _gather(self.x, absorbed)
            weight = torch.ones_like(rest[..., 0]) if weight is None else weight.to(rest.dtype)
            x = torch.cat([x, torch.matmul(weight.unsqueeze(1), rest)], dim=1)
            fused = self.counts.gather(1, absorbed).sum(1, keepdim=True)
            counts = torch.cat([counts, fused], dim=1)
            lookup = lookup.scatter(1, absorbed, kept.shape[1])
        return Tokens(x, counts, _follow(lookup, self.source), self.prefix)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _follow(lookup: Tensor, source: Tensor) -> Tensor:
    """Compose two maps; a patch dropped once (-1) stays dropped."""
    return torch.where(source < 0, source, lookup.gather(1, source.clamp(min=0)))
