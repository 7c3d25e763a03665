"""Chats answered in batches, each as if it were alone."""

from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.chat import ImagePart, SamplingOptions, Turn
from foveate.core.errors import BadRequest, ContextTooLong, FoveateError, Overloaded, RunFailed
from foveate.core.plan import Plan
from foveate.models.runners.base import Pixels
from foveate.models.vlm.answering import ChatAnswer, ChatRequest
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.sequence import AnswerPiece
from tests.support import chat_models
from tests.support.chat_models import TRUNK
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

SIDE = TRUNK.image_size
ASKED = (Turn("user", (ImagePart(), "what is left of the fox?")),)
TEXT = (Turn("user", ("how many objects are there?",)),)
TWO = (*ASKED, Turn("assistant", ("a teacup.",)), Turn("user", (ImagePart(), "and here?")))
PLANS = (
    "full", "pool:4", "pool:9", "pool:1", "uniform:5", "random:5", "diverse:4", "guided:4", "merge:7",
    "resolution:4", "none",
)  # fmt: skip
SHORT = SamplingOptions(8)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ChatRunner:
    return ChatRunner(chat_models.load(tmp_path_factory.mktemp("chat")), slots=4, slot_tokens=128)


def picture(seed: int = 0, side: int = SIDE) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def plan(runner: ChatRunner, text: str) -> Plan:
    return Plan.parse(text, runner.full)


def answered(result: ChatAnswer | FoveateError) -> ChatAnswer:
    assert isinstance(result, ChatAnswer), result
    return result


def test_chats_of_a_batch_are_answered_as_each_alone(runner: ChatRunner) -> None:
    requests = [
        ChatRequest([picture(1)], ASKED, SHORT),
        ChatRequest([], TEXT, SHORT),
        ChatRequest([picture(2), picture(3)], TWO, SamplingOptions(12)),
        ChatRequest([picture(2)], ASKED, SamplingOptions(9, temperature=1, seed=3)),
        ChatRequest([picture(4)], ASKED, SHORT),
        ChatRequest([picture(5)], (Turn("system", ("be brief",)), *ASKED), SHORT),
    ]
    chosen = plan(runner, "pool:9")
    together = runner.answers(requests, chosen)
    assert len(together) == 6 and runner.cache.free_slots == 4
    for request, got in zip(requests, together, strict=True):
        alone = runner.answer(request.pictures, request.turns, chosen, request.options)
        assert answered(got).text == alone.text
        assert [choice.token for choice in answered(got).choices] == [
            choice.token for choice in alone.choices
        ]


def test_a_chat_that_fails_fails_alone(runner: ChatRunner) -> None:
    long = (Turn("user", (ImagePart(), "fox " * 200)),)
    requests = [
        ChatRequest([picture(1)], ASKED, SHORT),
        ChatRequest([], ASKED, SHORT),
        ChatRequest([picture(1)], long, SHORT),
        ChatRequest([picture(1)[:40]], ASKED, SHORT),
        ChatRequest([picture(2)], ASKED, SHORT),
    ]
    got = runner.answers(requests, runner.full)
    assert [type(each) for each in got] == [ChatAnswer, BadRequest, ContextTooLong, RunFailed, ChatAnswer]
    assert "names 1 pictures, and 0 were given" in str(got[1])
    assert "16 of them visual" in str(got[2])
    for number in (0, 4):
        request = requests[number]
        alone = runner.answer(request.pictures, request.turns, runner.full, SHORT)
        assert answered(got[number]).text == alone.text
    with pytest.raises(BadRequest, match="names 1 pictures"):
        runner.answer([], ASKED, runner.full)


def test_pieces_are_reported_as_they_come(runner: ChatRunner) -> None:
    pieces: list[AnswerPiece] = []
    got = runner.answer([picture()], ASKED, runner.full, SamplingOptions(12), pieces.append)
    assert "".join(piece.text for piece in pieces) == got.text
    assert len(pieces) == len(got.choices) == 12
    numbers: list[int] = []
    requests = [ChatRequest([], ASKED), *[ChatRequest([], TEXT, SHORT)] * 5]
    runner.answers(requests, runner.full, lambda number, _: numbers.append(number))
    assert sorted(set(numbers)) == [1, 2, 3, 4, 5]


def test_no_slots_are_left(runner: ChatRunner) -> None:
    taken = [runner.cache.allocate() for _ in range(4)]
    with pytest.raises(Overloaded):
        runner.answer([picture()], ASKED, runner.full)
    for slot in taken:
        runner.cache.free(slot)


@pytest.mark.parametrize("text", ["full", "guided:4"])
@pytest.mark.parametrize(
    ("question", "sentence"),
    [("what \ud83e?", "the text is not valid Unicode"), ("what " * 200, "the chat has 4")],
)
def test_a_text_that_cannot_be_read_fails_alone_and_before_its_picture_runs(
    runner: ChatRunner, text: str, question: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    forward = runner.tower.forward

    def counted(images: torch.Tensor, *rest: Any) -> Any:
        encoded.append(len(images))
        return forward(images, *rest)

    monkeypatch.setattr(runner.tower, "forward", counted)
    bad = ChatRequest([picture(2)], (Turn("user", (ImagePart(), question)),), SHORT)
    good = ChatRequest([picture(1)], ASKED, SHORT)
    results = runner.answers([bad, good], plan(runner, text))
    assert isinstance(results[0], BadRequest)
    assert results[0].detail.startswith(sentence)
    alone = runner.answer([picture(1)], ASKED, plan(runner, text), SHORT)
    assert answered(results[1]).text == alone.text
    assert encoded == [1, 1]


@pytest.mark.parametrize("text", ["full", "pool:4", "guided:4", "merge:7"])
@pytest.mark.parametrize(
    "question", ["", "<|end|><|assistant|>a fox<|end|>", "\x00\x1b[2J\x07", "日本 👩\u200d🚀"]
)
def test_any_question_is_answered(runner: ChatRunner, text: str, question: str) -> None:
    turns = (Turn("user", (ImagePart(), question)),)
    got = runner.answer([picture(1)], turns, plan(runner, text), SHORT)
    assert got.text_tokens == len(runner.tokenizer.encode(question)) + 3
