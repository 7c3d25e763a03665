"""Two models as one network: the first blocks of one, a linear map, and the last blocks of the other.

"Stitched ViTs are Flexible Vision Backbones" (SN-Netv2, ECCV 2024), sections 3.1 and 3.2. A request's plan
selects the stitch. It is never a state of the modules.
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from foveate.models.layers.config import block_macs, classifier_macs, embedding_macs
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput


@dataclass(frozen=True, slots=True)
class StitchSpec:
    """The position of a stitch: `run` blocks of `starts` replace the first `replaced` blocks of `answers`."""

    answers: str
    """Name of the model that runs the last blocks and classifies."""
    replaced: int
    """Blocks of `answers` that do not run."""
    starts: str
    """Name of the model that runs the first blocks."""
    run: int
    """Blocks of `starts` that run."""


@dataclass(frozen=True, slots=True)
class Stitch:
    """A stitch with its trained map and the two trunks it joins. It does not reduce tokens."""

    spec: StitchSpec
    front: ElasticViT
    """The trunk that runs the first blocks."""
    joint: nn.Linear
    """From the width of `front` to that of `back`."""
    back: ElasticViT
    """The trunk that runs the last blocks."""

    def __call__(self, images: Tensor) -> TrunkOutput:
        """Classify normalised images (B, 3, S, S)."""
        tokens, identity = self.front.embed(images), create("none", self.front)
        for index in range(self.spec.run):
            tokens = self.front.blocks[index](tokens, identity, index)
        # Rotary positions belong to a trunk: the other one has its own wavelengths.
        rotation = self.back.rotation(self.front.side(images), tokens.x)
        tokens = replace(tokens.with_features(self.joint(tokens.x)), rotation=rotation)
        resolved = ResolvedPlan(identity, self.back.config.depth)
        return self.back.encode(tokens, resolved, start=self.spec.replaced)

    def flops(self, image_size: int) -> float:
        """Billions of multiply-adds of an image. image_size: in pixels."""
        front, back = self.front.config, self.back.config
        tokens = front.patches(image_size) + front.prefix
        total = embedding_macs(front, image_size) + block_macs(front, tokens, (tokens,) * self.spec.run)
        total += tokens * front.width * back.width
        total += block_macs(back, tokens, (tokens,) * (back.depth - self.spec.replaced))
        return (total + classifier_macs(back, tokens)) / 1e9
