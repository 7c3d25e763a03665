"""The token state that flows through the trunk, and the assignment that changes it."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.rope import Rotation


@dataclass(frozen=True, slots=True)
class Assignment:
    """A reducer's decision. `Tokens.apply` moves features, counts and source map by it.

    A token that is neither kept nor absorbed is dropped. Prefix tokens (class, distillation, registers) must
    be among the kept ones, first and in order.

    Shapes: B samples, N tokens before, K kept and M absorbed tokens, J new tokens, K' = K or K + J tokens
    afterwards.
    """

    kept: Tensor
    """(B, K) int64: positions of the tokens that stay, in their new order."""
    absorbed: Tensor | None = None
    """(B, M) int64: positions of the tokens that become part of other tokens. In a row with fewer of them
    than another, the first prefix token's position is padding: its share is 0, and it is part of itself.
    Then `counts` are given."""
    share: Tensor | None = None
    """Weights of the absorbed tokens' features. With `into`, (B, K, M) adds them to the kept tokens. Without
    `into`, (B, J, M) makes J new tokens, placed last. None: absorbed features are not used."""
    into: Tensor | None = None
    """(B, M) int64: the kept token, 0 to K - 1, that each absorbed token becomes part of. None: the new
    token."""
    own: Tensor | None = None
    """(B, K): the weight of each kept token's own features. None: 1."""
    counts: Tensor | None = None
    """(B, K'): counts of the tokens afterwards. None: the sums of the counts of their parts. A count of 0
    marks padding, which takes no part in attention; its `kept` entry must be a prefix token's position."""
    parts: Tensor | None = None
    """(B, M, J), for several new tokens: the weights that restore each absorbed token from the new ones when
    the grid is restored. An absorbed token counts as part of the new token with its largest weight."""

    def mix(self, x: Tensor) -> Tensor:
        """Apply the decision to features or to any other rows, one per token: (B, N, D) to (B, K', D)."""
        kept = gather_tokens(x, self.kept)
        if self.own is not None:
            kept = kept * self.own.unsqueeze(-1).to(x.dtype)
        if self.absorbed is None or self.share is None or not self.absorbed.shape[1]:
            return kept
        rest, share = gather_tokens(x, self.absorbed), self.share.to(x.dtype)
        if self.into is None:
            return torch.cat([kept, torch.matmul(share, rest)], dim=1)
        return torch.baddbmm(kept, share, rest)

    def total(self, x: Tensor) -> Tensor:
        """Unweighted sums over the parts of each token afterwards: (B, N, D) to (B, K', D)."""
        kept = gather_tokens(x, self.kept)
        if self.absorbed is None or not self.absorbed.shape[1]:
            return kept
        rest = gather_tokens(x, self.absorbed)
        if self.into is not None:
            return kept.scatter_add(1, self.into.unsqueeze(-1).expand_as(rest), rest)
        if self.parts is None:
            return torch.cat([kept, rest.sum(1, keepdim=True)], dim=1)
        new = rest.new_zeros(len(rest), self.parts.shape[2], rest.shape[2])
        index = self.parts.argmax(2, keepdim=True).expand_as(rest)
        return torch.cat([kept, new.scatter_add(1, index, rest)], dim=1)

    def positions(self, x: Tensor) -> Tensor:
        """Apply the decision to positions, or to anything linear in them: (B, N, D) to (B, K', D).

        A kept token stays where it is, also when it absorbs others: so every position is one of the input's,
        as the model was trained with. A new token is at the mean of its parts, weighted as their features.
        """
        kept = gather_tokens(x, self.kept)
        if self.into is not None or self.absorbed is None or self.share is None or not self.absorbed.shape[1]:
            return kept
        weights = self.share.to(x.dtype)
        weights = weights / weights.sum(2, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return torch.cat([kept, torch.matmul(weights, gather_tokens(x, self.absorbed))], dim=1)

    def spread(self, x: Tensor, length: int) -> Tensor:
        """Copy rows of the tokens afterwards to the `length` tokens before: (B, K', D) to (B, length, D).

        Each token gets the row of the token it became part of. Dropped tokens get 0.
        """
        return _gather_or_zero(x, self.slots(length))

    def slots(self, length: int) -> Tensor:
        """The new position of each of the `length` tokens before: (B, length) int64, -1 if dropped."""
        kept = self.kept
        order = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        lookup = torch.full((kept.shape[0], length), -1, device=kept.device).scatter(1, kept, order)
        if self.absorbed is not None and self.absorbed.shape[1]:
            lookup = lookup.scatter(1, self.absorbed, self._absorbing(self.absorbed))
        return lookup

    def _absorbing(self, absorbed: Tensor) -> Tensor:
        """The token afterwards that each absorbed token is part of: (B, M) int64."""
        if self.into is not None:
            return self.into
        first_new = self.kept.shape[1]
        if self.parts is None:
            return torch.full_like(absorbed, first_new)
        return first_new + self.parts.argmax(2)

    def restoration(self, length: int, after: int) -> Tensor:
        """Weights that restore the `length` tokens before from the `after` tokens afterwards.

        (B, length, after) float32. The rows of dropped tokens are zero.
        """
        slots = self.slots(length)
        weights = F.one_hot(slots.clamp(min=0), after).float() * (slots >= 0).unsqueeze(-1)
        if self.parts is None or self.absorbed is None:
            return weights
        parts = F.pad(self.parts.float(), (self.kept.shape[1], 0))
        return weights.scatter(1, self.absorbed.unsqueeze(-1).expand_as(parts), parts)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token features, and the input patches that each token represents."""

    x: Tensor
    """(B, N, D) features, prefix tokens first."""
    counts: Tensor
    """(B, N) float32: number of input tokens that each token represents. Proportional attention uses it."""
    source: Tensor
    """(B, P) int64: for each patch, the position of the token that represents it; -1 once it is dropped."""
    prefix: int
    """Number of prefix tokens. No reducer may change them."""
    origin: Tensor
    """(B, N) int64: the position at which each token entered the trunk. It does not change when the token
    absorbs others. -1 for a token made of several."""
    mixed: Tensor | None = None
    """(B, P, N) float32: weights that restore each patch from the tokens, where that takes more than the one
    token of the source map."""
    rotation: Rotation | None = None
    """Rotary positions; None for a model without them."""

    @classmethod
    def start(cls, x: Tensor, prefix: int, rotation: Rotation | None = None) -> "Tokens":
        """The state before any reduction: every token represents itself. x: (B, prefix + P, D)."""
        batch, length, _ = x.shape
        counts = torch.ones((), device=x.device).expand(batch, length)
        origin = torch.arange(length, device=x.device).expand(batch, -1)
        return cls(x, counts, origin[:, prefix:], prefix, origin, rotation=rotation)

    def __len__(self) -> int:
        return self.x.shape[1]

    @property
    def present(self) -> Tensor:
        """(B,) int64: number of tokens of each sample, without padding."""
        return (self.counts > 0).sum(1)

    def with_features(self, x: Tensor) -> "Tokens":
        """The same tokens with new features of the same shape."""
        return replace(self, x=x)

    def rows(self, index: Tensor) -> "Tokens":
        """Only the samples at the positions `index` (B',). It compacts a batch after an exit."""
        mixed = None if self.mixed is None else self.mixed[index]
        x, counts, source = self.x[index], self.counts[index], self.source[index]
        rotation = None if self.rotation is None else self.rotation.rows(index)
        return Tokens(x, counts, source, self.prefix, self.origin[index], mixed, rotation)

    def apply(self, assignment: Assignment) -> "Tokens":
        """Change features, counts, source map, origins and rotary positions as the assignment says."""
        counts, kept = assignment.counts, assignment.kept
        if counts is None:
            counts = assignment.total(self.counts.unsqueeze(-1)).squeeze(-1)
        source = _compose(assignment.slots(len(self)), self.source)
        new = counts.shape[1] - kept.shape[1]
        origin = F.pad(self.origin.gather(1, kept), (0, new), value=-1)
        mixed = self._mixed(assignment, counts.shape[1])
        rotation = self._rotation(assignment)
        return Tokens(assignment.mix(self.x), counts, source, self.prefix, origin, mixed, rotation)

    def _rotation(self, assignment: Assignment) -> Rotation | None:
        """Rotary positions after this assignment."""
        if self.rotation is None:
            return None
        angles = self.rotation.angles.expand(len(assignment.kept), -1, -1)
        return self.rotation.moved(assignment.positions(angles))

    def _mixed(self, assignment: Assignment, after: int) -> Tensor | None:
        """Restoration weights after this assignment. They are computed only once tokens have been mixed."""
        if self.mixed is None and assignment.parts is None:
            return None
        weights = assignment.restoration(len(self), after)
        if self.mixed is not None:
            return self.mixed @ weights
        return _gather_or_zero(weights, self.source)

    def grid(self) -> Tensor:
        """Features at the positions of their patches: (B, P, D), zeros where a patch was dropped."""
        return self.restored(self.x)

    def restored(self, each: Tensor) -> Tensor:
        """Any rows, one per token, at the positions of the patches: (B, N, W) to (B, P, W)."""
        if self.mixed is not None:
            return torch.matmul(self.mixed.to(each.dtype), each)
        return _gather_or_zero(each, self.source)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, D) at the given positions (B, P): (B, P, D).

    On a CPU, selecting rows of the whole batch is up to 15 times as fast as `gather` along each sample.
    """
    batch, length, width = x.shape
    first = torch.arange(0, batch * length, length, device=x.device).unsqueeze(1)
    return x.flatten(0, 1).index_select(0, (index + first).flatten()).view(batch, -1, width)


def _gather_or_zero(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, D) at the given positions (B, P), zeros at -1: (B, P, D)."""
    return gather_tokens(x, index.clamp(min=0)) * (index >= 0).unsqueeze(-1)


def _compose(lookup: Tensor, source: Tensor) -> Tensor:
    """Compose two position maps. A patch dropped once (-1) stays dropped."""
    return torch.where(source < 0, source, lookup.gather(1, source.clamp(min=0)))
