"""Answers chats in batches, one batch after the other: for evaluation, and for one client at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.core.chat import FinishReason, ImagePart, SamplingOptions, Turn, last_question
from foveate.core.errors import BadRequest, FoveateError, RunFailed
from foveate.core.plan import Plan
from foveate.models.runners.base import Pixels
from foveate.models.vlm import generation
from foveate.models.vlm.cost import ChatCost
from foveate.models.vlm.sampling import TokenChoice
from foveate.models.vlm.sequence import AnswerPiece, ChatSequence
from foveate.models.vlm.visual_tokens import VisualTokens

if TYPE_CHECKING:
    from foveate.models.vlm.runner import ChatRunner


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat to answer."""

    pictures: Sequence[Pixels]
    """In the order of the `ImagePart`s of the turns."""
    turns: Sequence[Turn]
    options: SamplingOptions = SamplingOptions()  # noqa: RUF009 -- frozen, so one instance serves every request


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """An answer, and what it cost."""

    text: str
    finish: FinishReason
    choices: tuple[TokenChoice, ...]
    """The tokens of the answer, the end mark included."""
    plan: Plan
    text_tokens: int
    """Tokens of the prompt that are not visual."""
    visual: tuple[VisualTokens, ...]
    """The visual tokens of each picture: which patches stood for it."""
    cost: ChatCost

    @property
    def visual_tokens(self) -> int:
        """Tokens of the prompt that are visual."""
        return sum(map(len, self.visual))


def answer_all(
    runner: "ChatRunner",
    requests: Sequence[ChatRequest],
    plan: Plan,
    on_piece: Callable[[int, AnswerPiece], None] | None = None,
) -> list[ChatAnswer | FoveateError]:
    """Answer chats under one plan, in batches. A request that fails has its error, and no other does.

    on_piece gets the number of the request with each piece. Raises BadPlan, and Overloaded where others
    have all slots.
    """
    runner.check(plan)
    results: list[ChatAnswer | FoveateError] = []
    remaining = iter(requests)
    while batch := list(islice(remaining, max(1, runner.cache.free_slots))):
        results += _answer_batch(runner, batch, plan, len(results), on_piece)
    return results


def _answer_batch(
    runner: "ChatRunner",
    requests: Sequence[ChatRequest],
    plan: Plan,
    first: int,
    on_piece: Callable[[int, AnswerPiece], None] | None,
) -> list[ChatAnswer | FoveateError]:
    """Answer as many chats as there are free slots. first: the number of the first of them."""
    visual = _visual(runner, requests, plan)
    started: list[ChatSequence | FoveateError] = []
    for request, tokens in zip(requests, visual, strict=True):
        try:
            if isinstance(tokens, FoveateError):
                raise tokens
            started.append(runner.sequence(runner.prompt(request.turns, tokens), request.options))
        except FoveateError as error:
            started.append(error)
    running = [each for each in started if isinstance(each, ChatSequence)]
    numbers = {id(each): first + place for place, each in enumerate(started)}

    def report(sequence: ChatSequence, piece: AnswerPiece) -> None:
        if on_piece is not None:
            on_piece(numbers[id(sequence)], piece)

    generation.generate(runner.model, runner.cache, running, report)
    return [
        _answered(runner, each, plan, tokens) if isinstance(each, ChatSequence) else each
        for each, tokens in zip(started, visual, strict=True)
    ]


def _visual(
    runner: "ChatRunner", requests: Sequence[ChatRequest], plan: Plan
) -> list[tuple[VisualTokens, ...] | FoveateError]:
    """The visual tokens of the pictures of each request. All pictures run as one batch."""
    errors: list[FoveateError | None] = []
    images: list[Tensor] = []
    questions: list[str] = []
    for request in requests:
        try:
            check_request(runner, request, plan)
            if request.pictures:
                pixels = runner.stack(request.pictures, plan)
                images.append(runner.preprocess(pixels, runner.encoded_size(plan)))
                questions += [last_question(request.turns)] * len(request.pictures)
            errors.append(None)
        except FoveateError as error:
            errors.append(error)
    features = runner.features(torch.cat(images), plan) if images else []
    tokens = iter(runner.visual_tokens(features, plan, questions))
    return [
        error or tuple(islice(tokens, len(request.pictures)))
        for request, error in zip(requests, errors, strict=True)
    ]


def _answered(
    runner: "ChatRunner", sequence: ChatSequence, plan: Plan, visual: tuple[VisualTokens, ...] | FoveateError
) -> ChatAnswer | FoveateError:
    """The result of a sequence that has ended."""
    if sequence.error is not None:
        return sequence.error
    if isinstance(visual, FoveateError) or sequence.finish is None or sequence.finish == "error":
        return RunFailed("the answer was not generated")
    text_tokens = len(sequence.prompt) - sequence.prompt.visual_tokens
    cost = runner.cost(plan, text_tokens, len(visual), len(sequence.choices))
    return ChatAnswer(
        sequence.text, sequence.finish, tuple(sequence.choices), plan, text_tokens, visual, cost
    )


def check_request(runner: "ChatRunner", request: ChatRequest, plan: Plan) -> None:
    """Raise BadRequest for a chat that cannot be answered under a plan, before anything is computed."""
    named = sum(isinstance(part, ImagePart) for turn in request.turns for part in turn.parts)
    if named != len(request.pictures):
        raise BadRequest(f"the chat names {named} pictures, and {len(request.pictures)} were given")
    runner.check_length(runner.tokenizer.chat(request.turns), plan)
