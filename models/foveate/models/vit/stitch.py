"""Two siblings as one network: the first blocks of one, a linear map, the last blocks of the other.

"Stitched ViTs are Flexible Vision Backbones" (SN-Netv2, ECCV 2024), sections 3.1 and 3.2. Which stitch a
request takes is an argument of its plan and never a state of the modules.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from foveate.models.layers.config import block_macs, classifier_macs, embedding_macs
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput


@dataclass(frozen=True, slots=True)
class StitchSpec:
    """Where the work passes over: `answers` has its first `replaced` blocks done by `run` of `starts`."""

    answers: str
    replaced: int
    starts: str
    run: int


@dataclass(frozen=True, slots=True)
class Stitch:
    """A stitch with its trained map and the trunks it joins. Tokens go through it unreduced."""

    spec: StitchSpec
    front: ElasticViT
    joint: nn.Linear
    """From the width of the trunk that starts to that of the one that answers."""
    back: ElasticViT

    def __call__(self, images: Tensor) -> TrunkOutput:
        """Normalised images (B, 3, S, S)."""
        tokens, nothing = self.front.embed(images), create("none", self.front)
        for index in range(self.spec.run):
            tokens = self.front.blocks[index](tokens, nothing, index)
        tokens = tokens.with_features(self.joint(tokens.x))
        return self.back.encode(
            tokens, ResolvedPlan(nothing, self.back.config.depth), start=self.spec.replaced
        )

    def flops(self, image_size: int) -> float:
        """Billions of multiply-adds of a picture."""
        config, h = self.front.config, self.back.config
        tokens = config.patches(image_size) + config.prefix
        total = embedding_macs(config, image_size) + block_macs(config, tokens, (tokens,) * self.spec.run)
        total += tokens * config.width * h.width
        total += block_macs(h, tokens, (tokens,) * (h.depth - self.spec.replaced)) + classifier_macs(h)
        return total / 1e9
