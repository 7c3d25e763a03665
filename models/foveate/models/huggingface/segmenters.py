"""Segmentation with transformers: SegFormer, Mask2Former, UperNet, DPT, and what answers like them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import RunFailed
from foveate.core.outcome import ClassMaps, Result
from foveate.core.plan import Plan, Precision
from foveate.core.profile import Profile
from foveate.models.huggingface.axes import Axes, Changes
from foveate.models.huggingface.fetch import Pretrained
from foveate.models.huggingface.runner import PretrainedRunner
from foveate.models.runners.dense import class_maps

SMALLER = (5 / 6, 2 / 3, 1 / 2)
"""Image sizes that are worth measuring, as shares of the checkpoint's own."""
TINY = 1e-30
"""Taken for zero by logarithms, and large enough that float16 holds them."""


def _blocks(config: Any) -> int:
    """Blocks of a model, or of its backbone where it has one."""
    config = getattr(config, "backbone_config", None) or config
    return sum(getattr(config, "depths", None) or [getattr(config, "num_hidden_layers", 1)])


def _pyramid(config: Any) -> Axes:
    """Of models whose coarsest features stand for 32 pixels, wherever they lie."""
    return Axes(32, 32, _blocks(config))


def _dpt(config: Any) -> Axes:
    """Positions are interpolated in transformers, but with a convolutional stem under them."""
    return Axes(0 if config.is_hybrid else 2 * config.patch_size, config.patch_size, _blocks(config))


def _mask2former(config: Any) -> Axes:
    """The layers of the pixel decoder's encoder are those that may be left out (ECO-M2F). Its group norms
    do not take pictures of 32 pixels, whose coarsest features are a single place."""
    return Axes(32, 32, config.encoder_layers, depths=True, least=64)


AXES: Mapping[str, Callable[[Any], Axes]] = {
    "segformer": _pyramid,
    "upernet": _pyramid,
    "mask2former": _mask2former,
    "dpt": _dpt,
}
"""The architectures whose plans are tested. Any other runs in full alone, if its output can be read."""


def axes_of(config: Any) -> Axes:
    known = AXES.get(config.model_type)
    if known is not None:
        return known(config)
    return Axes(0, 32, _blocks(config))


class Segmenter(PretrainedRunner):
    """Names the pixels of pictures.

    In masks the model's class c is c + 1, and 0 is never said; a model whose class 0 is called background
    means by 0 what masks mean by it, and there c is c.
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
        super().__init__(
            pretrained, axes_of(pretrained.model.config), 0, precision, device, max_batch, profile
        )

    def candidates(self) -> tuple[Plan, ...]:
        """Each depth, each smaller size, and that with half of the depth."""
        step, most = self.axes.step, self.axes.blocks if self.axes.depths else 1
        texts = [f"depth:{depth}" for depth in range(most - 1, 0, -1)]
        sides = {round(share * self.full.image_size / step) * step for share in SMALLER} if step else set()
        least = max(self.axes.least, 1)
        for side in sorted((s for s in sides if least <= s < self.full.image_size), reverse=True):
            texts.append(f"{self.full.variant}@{side}")
            texts += [f"{texts[-1]}/depth:{most // 2}"] if most > 1 else []
        return (self.full, *(Plan.parse(text, self.full) for text in texts))

    def pixels(self, batch: Tensor, plan: Plan) -> Tensor:
        images = self.sized(batch, plan.image_size)
        return images.flip(1) if self.pretrained.prepared.reversed else images

    def shape(self, plan: Plan) -> tuple[int, ...]:
        return (3, plan.image_size, plan.image_size)

    def tokens(self, plan: Plan) -> int:
        return int((-(-plan.image_size // self.axes.patch)) ** 2)

    def changes(self, model: Any, plan: Plan) -> Changes:
        """Nothing depends on the size of the picture; a capped depth takes the first of Mask2Former's six
        layers ("Efficient Transformer Encoders for Mask2Former-style models")."""
        if plan.depth is None:
            return ()
        encoder = model.model.pixel_level_module.decoder.encoder
        return ((encoder, {"layers": encoder.layers[: plan.depth]}),)

    def accepts(self, out: Any) -> bool:
        classes = len(self.pretrained.labels) + 1 - self.first
        logits, of_queries = out.get("logits"), out.get("class_queries_logits")
        if of_queries is not None and out.get("masks_queries_logits") is not None:
            return bool(of_queries.shape[-1] == classes + 1)
        return logits is not None and logits.ndim == 4 and logits.shape[1] == classes

    def results(self, out: Any, plan: Plan) -> Sequence[Result | Exception]:
        found: list[Result | Exception] = []
        for shares, maps in class_maps(scores_of(out)):
            if maps is None:
                found.append(RunFailed("the model's scores for this picture are not finite"))
                continue
            shares = np.concatenate([np.zeros(self.first, np.float32), shares])
            named = ClassMaps(tuple(index + self.first for index in maps.classes), maps.scores)
            blocks = plan.depth or self.axes.blocks
            found.append(Result(shares, self.tokens(plan), blocks, self.gflops(plan), maps=named))
        return found


def scores_of(out: Any) -> Tensor:
    """Unnormalised log-probabilities of the classes (B, C, h, w).

    Of models that answer with masks and classes for queries (Mask2Former), a class's probability is summed
    over the queries, "no object" left out, as in "Per-Pixel Classification is Not All You Need", section 3.4.
    """
    if out.get("masks_queries_logits") is None:
        logits: Tensor = out["logits"]
        return logits.float()
    classes = out["class_queries_logits"].float().softmax(-1)[..., :-1]
    masks = out["masks_queries_logits"].float().sigmoid()
    return torch.einsum("bqc,bqhw->bchw", classes, masks).clamp(min=TINY).log()
