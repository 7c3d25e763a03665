"""The runner of a text tower: texts to embeddings, served together with the image tower of its checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import BadPlan, BadRequest, RunFailed
from foveate.core.model import ModelCard, Rung, ZeroShot
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.huggingface.text_tower import TextTower
from foveate.models.runners.base import DEFAULT_MAX_BATCH, MAX_BATCH, fingerprint

MIN_PLAN_SIZE = 10
"""The smallest size that a plan can name. The size of a text plan is the tokens of the longest text."""


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts as tokens."""

    tokens: Tensor
    """(B, N) int64. A text with too many tokens is a row of the first ones."""
    lengths: Sequence[int]
    """Tokens of each text."""
    texts: Sequence[str]


class TextRunner:
    """A text tower in float32 on one device. `stack` and `run` keep no state.

    Its embeddings are cached by text, so they do not depend on the plan or the precision of the image tower.
    """

    def __init__(self, tower: TextTower, name: str, licence: str, device: str, max_batch: int) -> None:
        """name: of the model of images; max_batch: 0 for the device's default."""
        self.tower, self.device = tower, torch.device(device)
        self.model = tower.model.to(self.device).eval()
        self.max_batch = max_batch or MAX_BATCH.get(self.device.type, DEFAULT_MAX_BATCH)
        self.full = Plan(f"{name}-text", max(MIN_PLAN_SIZE, tower.max_tokens))
        self.times: Mapping[int, Mapping[Plan, Mapping[int, float]]] = {}
        """Seconds per batch by number of threads, plan and batch size, as far as they are measured."""
        self.warmup: Any = None
        """The first runs that are left, a `Warmup` of the engine's protocol; None for none."""
        typical = len(tower.tokenize([tower.family.template.format("object")])[0])
        length = tower.max_tokens if tower.family.padded else typical
        self.card = ModelCard(
            name=self.full.variant,
            description=f"embeds the labels of {name}",
            full=self.full,
            labels=(),
            parameters=sum(p.numel() for p in self.model.parameters()),
            input=None,
            ladder=(Rung(self.full, tower.gflops(length), length, 1.0),),
            licence=licence,
            source=tower.source,
            task="text",
            weights=fingerprint(self.model, tower.table()),
        )

    @property
    def zero_shot(self) -> ZeroShot:
        """How the model of images classifies by the embeddings of this one."""
        tower = self.tower
        return ZeroShot(
            self.card.name, self.card.weights, tower.family.template, tower.scale, tower.bias,
            tower.family.activation,
        )  # fmt: skip

    def use(self, threads: int) -> None:
        """Run the following batches on this number of threads."""
        torch.set_num_threads(threads)

    def check(self, plan: Plan) -> None:
        """Raise BadPlan for a plan other than full."""
        if plan != self.full:
            raise BadPlan(f"{self.full.variant} runs {self.full} alone, not {plan}")

    def cost_varies(self, plan: Plan) -> bool:
        """False: all short texts take about the same compute."""
        return False

    def blank_batch(self, size: int) -> TextBatch:
        """`size` short texts."""
        return self.stack([self.tower.family.template.format("object")] * size, self.full)

    def stack(self, media: Sequence[str], plan: Plan) -> TextBatch:
        """Texts to tokens, padded to the longest one."""
        tokens = self.tower.tokenize(media)
        padded = self.tower.pad([row[: self.tower.max_tokens] for row in tokens])
        lengths = [len(row) for row in tokens]
        return TextBatch(padded.to(self.device, non_blocking=True), lengths, media)

    @torch.inference_mode()
    def run(self, batch: TextBatch, plan: Plan) -> Sequence[Result | Exception]:
        """The embedding of each text, of length 1. A text with too many tokens fails alone (BadRequest)."""
        embeddings = self.tower.embed(batch.tokens).cpu().numpy()
        rows = zip(embeddings, batch.lengths, batch.texts, strict=True)
        return [self._result(*row) for row in rows]

    def _result(self, embedding: NDArray[np.float32], length: int, text: str) -> Result | Exception:
        longest = self.tower.max_tokens
        if length > longest:
            return BadRequest(
                f"the text {text[:40]!r} has {length} tokens, and {self.full.variant} takes at most "
                f"{longest}; shorten the label or the template"
            )
        if not np.isfinite(embedding).all():
            return RunFailed("the embedding of this label is not finite")
        tokens = longest if self.tower.family.padded else length
        return Result(embedding, tokens, self.tower.depth, self.tower.gflops(tokens))
