"""Compare the runner's greedy answers with those of transformers' own `generate`."""

from collections.abc import Sequence

import torch

from foveate.core.chat import SamplingOptions
from foveate.core.plan import Plan
from foveate.models.profiling.chat_quality import turns_of
from foveate.models.profiling.question_set import DecodedQuestions
from foveate.models.vlm.answering import ChatAnswer, ChatRequest
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.tokenizer import END, IMAGE

PLANS = ("full", "pool:49", "pool:16", "guided:16")
"""Each question is asked under one of them."""
OPTIONS = SamplingOptions(32)


def share_equal(
    runner: ChatRunner, data: DecodedQuestions, questions: int, plans: Sequence[str] = PLANS
) -> float:
    """The share of answers whose tokens are all equal. questions: at most; batches are the runner's."""
    spread = range(0, len(data.asked), max(1, len(data.asked) // questions))[:questions]
    equal: list[bool] = []
    for number, text in enumerate(plans):
        plan = Plan.parse(text, runner.full)
        asked = [data.asked[index] for index in spread[number :: len(plans)]]
        requests = [ChatRequest(data.images.at([n]), turns_of(q.question), OPTIONS) for n, q in asked]
        for request, answer in zip(requests, runner.answers(requests, plan), strict=True):
            if not isinstance(answer, ChatAnswer):
                raise answer
            tokens = [choice.token for choice in answer.choices]
            equal.append(tokens == transformers_tokens(runner, request, answer))
    return sum(equal) / len(equal)


@torch.inference_mode()
def transformers_tokens(runner: ChatRunner, request: ChatRequest, answer: ChatAnswer) -> list[int]:
    """The tokens that `generate` gives for the same visual tokens."""
    visual = iter(answer.visual)
    embedded: list[torch.Tensor] = []
    positions: list[int] = []
    for position, token in enumerate(runner.tokenizer.chat(request.turns)):
        part = next(visual).tokens if token == IMAGE else runner.model.embeddings[token][None]
        embedded.append(part)
        positions += [position] * len(part)
    generated = runner.model.decoder.generate(
        inputs_embeds=torch.cat(embedded)[None],
        position_ids=torch.tensor([positions]),
        attention_mask=torch.ones(1, len(positions), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=request.options.max_tokens,
        eos_token_id=END,
        pad_token_id=0,
    )
    tokens: list[int] = generated[0].tolist()
    return tokens
