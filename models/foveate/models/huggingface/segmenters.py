"""Segmentation with transformers: SegFormer, Mask2Former, UperNet, DPT, and models with such outputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import RunFailed
from foveate.core.outcome import ClassMaps, Result
from foveate.core.plan import Plan, Precision
from foveate.core.profile import Profile
from foveate.models.huggingface.axes import Changes, PlanAxes
from foveate.models.huggingface.fetch import Pretrained
from foveate.models.huggingface.runner import PretrainedRunner
from foveate.models.runners.dense import class_maps

SMALLER = (5 / 6, 2 / 3, 1 / 2)
"""Image sizes to measure, as shares of the checkpoint's own."""
TINY = 1e-30
"""Replaces zero before a logarithm, whose result then fits in float16."""


def _blocks(config: Any) -> int:
    """Blocks of the model, or of its backbone where it has one."""
    config = getattr(config, "backbone_config", None) or config
    return sum(getattr(config, "depths", None) or [getattr(config, "num_hidden_layers", 1)])


def _pyramid(config: Any) -> PlanAxes:
    """Models whose coarsest features represent 32 x 32 pixels, at any position."""
    return PlanAxes(32, 32, _blocks(config))


def _dpt(config: Any) -> PlanAxes:
    """transformers interpolates the positions, except in hybrids with a convolutional stem."""
    return PlanAxes(0 if config.is_hybrid else 2 * config.patch_size, config.patch_size, _blocks(config))


def _mask2former(config: Any) -> PlanAxes:
    """A depth leaves out layers of the pixel decoder's encoder (ECO-M2F).

    Its group norms do not run on images of 32 pixels, whose coarsest feature map is a single element.
    """
    return PlanAxes(32, 32, config.encoder_layers, depths=True, min_size=64)


AXES: Mapping[str, Callable[[Any], PlanAxes]] = {
    "segformer": _pyramid,
    "upernet": _pyramid,
    "mask2former": _mask2former,
    "dpt": _dpt,
}
"""The architectures whose plans are tested. Any other has the full plan alone, if its output can be read."""


def axes_of(config: Any) -> PlanAxes:
    """The plans of a configuration's architecture."""
    known = AXES.get(config.model_type)
    if known is not None:
        return known(config)
    return PlanAxes(0, 32, _blocks(config))


class PretrainedSegmenter(PretrainedRunner):
    """A model of transformers that segments images.

    In masks 0 is the background. For a model without a background, its class c is c + 1 in masks, and 0 does
    not occur. For a model whose class 0 is the background, the numbers are the same.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        self.first = 0 if pretrained.background else 1
        """The number in masks of the model's class 0."""
        super().__init__(
            pretrained, axes_of(pretrained.model.config), 0, precision, device, max_batch, profile
        )

    def candidates(self) -> tuple[Plan, ...]:
        """Full, each depth, each smaller size, and each smaller size with half of the depth."""
        step, max_depth = self.axes.step, self.axes.blocks if self.axes.depths else 1
        texts = [f"depth:{depth}" for depth in range(max_depth - 1, 0, -1)]
        sides = {round(share * self.full.image_size / step) * step for share in SMALLER} if step else set()
        min_size = max(self.axes.min_size, 1)
        for side in sorted((s for s in sides if min_size <= s < self.full.image_size), reverse=True):
            texts.append(f"{self.full.variant}@{side}")
            texts += [f"{texts[-1]}/depth:{max_depth // 2}"] if max_depth > 1 else []
        return (self.full, *(Plan.parse(text, self.full) for text in texts))

    def pixels(self, batch: Tensor, plan: Plan) -> Tensor:
        """(B, S, S, 3) uint8 to (B, 3, s, s), normalised."""
        images = self.preprocess(batch, plan.image_size)
        return images.flip(1) if self.pretrained.preprocessing.reversed else images

    def shape(self, plan: Plan) -> tuple[int, ...]:
        """(3, s, s)."""
        return (3, plan.image_size, plan.image_size)

    def tokens(self, plan: Plan) -> int:
        """Squares of the coarsest feature map."""
        return int((-(-plan.image_size // self.axes.patch)) ** 2)

    def changes(self, model: Any, plan: Plan) -> Changes:
        """No attribute depends on the image size. A depth keeps the first layers of Mask2Former's six
        ("Efficient Transformer Encoders for Mask2Former-style models")."""
        if plan.depth is None:
            return ()
        encoder = model.model.pixel_level_module.decoder.encoder
        return ((encoder, {"layers": encoder.layers[: plan.depth]}),)

    def accepts(self, out: Any) -> bool:
        """Scores per pixel, or masks and classes of queries, for as many classes as there are labels."""
        classes = len(self.pretrained.labels) + 1 - self.first
        logits, query_logits = out.get("logits"), out.get("class_queries_logits")
        if query_logits is not None and out.get("masks_queries_logits") is not None:
            return bool(query_logits.shape[-1] == classes + 1)
        return logits is not None and logits.ndim == 4 and logits.shape[1] == classes

    def results(self, out: Any, plan: Plan) -> Sequence[Result | Exception]:
        """One result per image, with class maps. An image whose scores are not finite fails alone."""
        results: list[Result | Exception] = []
        for shares, maps in class_maps(scores_of(out)):
            if maps is None:
                results.append(RunFailed("the model's scores for this image are not finite"))
                continue
            shares = np.concatenate([np.zeros(self.first, np.float32), shares])
            numbered = ClassMaps(tuple(index + self.first for index in maps.classes), maps.scores)
            blocks = plan.depth or self.axes.blocks
            results.append(Result(shares, self.tokens(plan), blocks, self.gflops(plan), maps=numbered))
        return results


def scores_of(out: Any) -> Tensor:
    """Unnormalised log-probabilities of the classes (B, C, h, w).

    For models that give masks and classes of queries (Mask2Former), a class's probability is the sum over the
    queries without "no object", as in "Per-Pixel Classification is Not All You Need", section 3.4.
    """
    if out.get("masks_queries_logits") is None:
        logits: Tensor = out["logits"]
        return logits.float()
    classes = out["class_queries_logits"].float().softmax(-1)[..., :-1]
    masks = out["masks_queries_logits"].float().sigmoid()
    return torch.einsum("bqc,bqhw->bchw", classes, masks).clamp(min=TINY).log()
