"""The batch of scenes that classifiers are trained on."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.labels import LABELS

IGNORE = -100
"""The label of a patch or token that the loss leaves out."""
BACKGROUND = len(LABELS)
"""The label of a patch without an object."""


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """Scenes with the class and the mask of their object."""

    images: Tensor
    """(B, H, W, 3) uint8 RGB."""
    labels: Tensor
    """(B,) int64."""
    masks: Tensor
    """(B, H, W) bool: the visible pixels of the object."""

    def patch_labels(self, side: int) -> Tensor:
        """The label of each patch of a grid with this many patches a side: (B, side * side) int64.

        A patch has the object's class if the object covers at least a third of it, BACKGROUND if it covers
        none of it, and IGNORE otherwise.
        """
        share = F.adaptive_avg_pool2d(self.masks.unsqueeze(1).float(), side).flatten(1)
        label = self.labels.unsqueeze(1).expand_as(share)
        return torch.where(share >= 0.33, label, torch.where(share == 0, BACKGROUND, IGNORE))
