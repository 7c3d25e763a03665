"""transformers' own `generate` on the decoder of a runner, with visual tokens that are computed before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.plan import Plan
from foveate.models.profiling.chat_quality import turns_of
from foveate.models.vlm.prompt import ChatPrompt
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.tokenizer import END, PAD
from foveate.models.vlm.visual_tokens import PictureFeatures
from loadtests.chat.workload import ChatQuestion

CacheKind = Literal["dynamic", "static"]


@dataclass(frozen=True, slots=True)
class PaddedPrompts:
    """The inputs of `generate`: prompts padded at their left to the longest."""

    embedded: Tensor
    """(B, L, D)."""
    positions: Tensor
    """(B, L) int64: rotary positions, which `generate` continues."""
    mask: Tensor
    """(B, L) int64: 1 for a token, 0 for padding."""


def features(runner: ChatRunner, question: ChatQuestion, plan: Plan) -> PictureFeatures:
    """The features of a question's picture, which is encoded alone."""
    return runner.encode(runner.stack([question.picture.pixels], plan), plan)[0]


def prompts(
    runner: ChatRunner, questions: Sequence[ChatQuestion], pictures: Sequence[PictureFeatures], plan: Plan
) -> list[ChatPrompt]:
    """The prompts of questions, from the features of their pictures."""
    visual = runner.visual_tokens(pictures, plan, [question.text for question in questions])
    return [runner.prompt(turns_of(q.text), [tokens]) for q, tokens in zip(questions, visual, strict=True)]


@torch.inference_mode()
def padded(some: Sequence[ChatPrompt]) -> PaddedPrompts:
    """One batch of prompts. Raises ValueError for one with an own mask, which `generate` does not take."""
    if any(prompt.mask is not None for prompt in some):
        raise ValueError("generate takes no prompt with a mask")
    longest = max(map(len, some))
    gaps = [longest - len(prompt) for prompt in some]
    return PaddedPrompts(
        torch.stack([F.pad(p.embedded, (0, 0, gap, 0)) for p, gap in zip(some, gaps, strict=True)]),
        torch.stack([F.pad(p.positions, (gap, 0)) for p, gap in zip(some, gaps, strict=True)]),
        torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps]),
    )


@torch.inference_mode()
def generate(
    runner: ChatRunner,
    batch: PaddedPrompts,
    tokens: int,
    cache: CacheKind = "dynamic",
    *,
    ends: bool = False,
) -> list[list[int]]:
    """The greedy tokens of each row. ends: whether the end mark ends an answer; else all have `tokens`."""
    options: dict[str, Any] = {} if cache == "dynamic" else {"cache_implementation": cache}
    rows: list[list[int]] = runner.model.decoder.generate(
        inputs_embeds=batch.embedded,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=END if ends else len(runner.tokenizer),  # a number that no token has
        pad_token_id=PAD,
        **options,
    ).tolist()
    return rows


def generate_answers(
    runner: ChatRunner,
    questions: Sequence[ChatQuestion],
    pictures: Sequence[PictureFeatures],
    tokens: int,
    cache: CacheKind = "dynamic",
) -> list[list[int]]:
    """So many tokens for each question under the full plan, from the features of the pictures."""
    return generate(runner, padded(prompts(runner, questions, pictures, runner.full)), tokens, cache)
