"""Answers while they are generated: their ends, and their text in pieces."""

from typing import Any

import pytest
import torch

from foveate.core.chat import SamplingOptions
from foveate.models.vlm.generation import cancel, generate, start
from foveate.models.vlm.sequence import AnswerPiece
from foveate.models.vlm.tokenizer import END
from tests.support.chat_sequences import CHATS, model, sequence, slots, tokens, words
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_the_answer_ends_at_the_end_mark() -> None:
    given = sequence("one picture", SamplingOptions(40))
    generate(model(), slots(1), [given])
    ended = sequence("one picture", SamplingOptions(40))
    start(model(), cache := slots(1), [ended])
    bias = torch.zeros(len(words()))
    assert ended.finish is None
    ended.accept(ended.sampler.choose(bias.index_fill(0, torch.tensor([END]), 9).log_softmax(-1)))
    assert ended.finish == "stop"
    assert tokens(ended) == [tokens(given)[0], END]
    cancel(cache, ended)
    assert cache.free_slots == 1


def test_stop_texts_end_answers() -> None:
    free = sequence("one picture", SamplingOptions(30))
    generate(model(), slots(1), [free])
    middle = free.text[len(free.text) // 2 :][:3]
    ended = sequence("one picture", SamplingOptions(30, stop=("no such text", middle)))
    generate(model(), slots(1), [ended])
    assert ended.finish == "stop"
    assert ended.text == free.text[: free.text.index(middle)].strip()
    assert len(ended.choices) < len(free.choices)


def test_pieces_make_up_the_answers() -> None:
    together = [sequence(chat, SamplingOptions(20, top_logprobs=3)) for chat in CHATS]
    pieces: dict[int, list[AnswerPiece]] = {id(each): [] for each in together}
    generate(model(), slots(len(CHATS)), together, lambda each, piece: pieces[id(each)].append(piece))
    for own in together:
        got = pieces[id(own)]
        assert "".join(piece.text for piece in got) == own.text == words().decode(tokens(own))
        assert [piece.choice for piece in got] == own.choices
        assert [piece.finish for piece in got] == [None] * (len(got) - 1) + [own.finish]
        for choice in own.choices:
            token, logprob = choice.alternatives[0]
            assert (token, logprob) == (choice.token, choice.logprob)
            assert len(choice.alternatives) == 3
