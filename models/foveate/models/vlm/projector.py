"""The projector from patch features to visual tokens, for any number of tokens.

"TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference" (arXiv 2504.03154), section 3.2:
adaptive pooling and SwiGLU. Here SwiGLU runs on each patch before the patches of a visual token are averaged,
and a learned salience weighs them: so an object that covers a part of a cell is not averaged away.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OCTAVES = 4
COORDINATES = 4 * OCTAVES
"""Numbers that describe a position."""
MAX_SALIENCE = 12.0
"""Bounds the exponent of the salience."""


@dataclass(frozen=True, slots=True)
class ProjectorSpec:
    """The shape of a projector."""

    features: int
    """Numbers in the features of a patch."""
    hidden: int
    width: int
    """Numbers in a visual token: the width of the language model."""
    salience_heads: int


@dataclass(frozen=True, slots=True)
class PatchStates:
    """Patches after the part of the projector that sees each patch alone."""

    hidden: Tensor
    """(B, P, H)."""
    salience: Tensor
    """(B, P, S) float32, positive: the weight of each patch, for each head's share of the hidden numbers."""
    positions: Tensor
    """(P, 2) or (B, P, 2) float32: x and y of the patches' centres, 0 to 1."""


def coordinates(positions: Tensor) -> Tensor:
    """Sines and cosines of positions (..., 2) at OCTAVES frequencies: (..., COORDINATES)."""
    angles = [math.pi * 2**octave * positions for octave in range(OCTAVES)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], -1)


class Projector(nn.Module):
    """Maps patch features to visual tokens under an assignment of patches to tokens."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.up = nn.Linear(spec.features + COORDINATES, 2 * spec.hidden)
        self.salience = nn.Linear(spec.features, spec.salience_heads)
        self.norm = nn.RMSNorm(spec.hidden)
        self.out = nn.Linear(spec.hidden, spec.width)
        self.where = nn.Linear(COORDINATES, spec.width)

    def patches(self, features: Tensor, positions: Tensor) -> PatchStates:
        """Patch features (B, P, F), with their positions (P, 2) or (B, P, 2), to states of patches."""
        places = coordinates(positions).to(features.dtype).expand(*features.shape[:2], -1)
        up, gate = self.up(torch.cat([features, places], -1)).chunk(2, -1)
        salience = self.salience(features).float().clamp(-MAX_SALIENCE, MAX_SALIENCE).exp()
        return PatchStates(up * F.silu(gate), salience, positions)

    def each(self, patches: PatchStates) -> Tensor:
        """The visual tokens of single patches: (B, P, D). It equals `tokens` under the identity."""
        tokens: Tensor = self.out(self.norm(patches.hidden))
        places: Tensor = self.where(coordinates(patches.positions).to(tokens.dtype))
        return tokens + places

    def tokens(self, patches: PatchStates, weights: Tensor, positions: Tensor) -> Tensor:
        """Visual tokens (B, K, D).

        weights: (K, P) or (B, K, P), how much of each patch a token averages. The salience multiplies them,
        and their scale has no effect. positions: (K, 2) or (B, K, 2), those of the tokens.
        """
        spec = self.spec
        salience = patches.salience
        batch, count, _ = patches.hidden.shape
        shares = patches.hidden.float().view(batch, count, spec.salience_heads, -1)
        weighted = shares * salience.unsqueeze(-1)
        total = torch.matmul(weights, salience).unsqueeze(-1)
        summed = torch.matmul(weights, weighted.flatten(2))
        hidden = (summed.view(batch, -1, *shares.shape[2:]) / total).flatten(2)
        tokens: Tensor = self.out(self.norm(hidden.to(self.out.weight.dtype)))
        places: Tensor = self.where(coordinates(positions).to(tokens.dtype))
        return tokens + places
