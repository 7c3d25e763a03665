"""The runner of vision-language models satisfies the protocol of the chat engine."""

from typing import Any

import pytest

from foveate.core.chat import CachedParts, SamplingOptions
from foveate.engine.chat.runner import AnswerState, ChatModel, KeptPrefix
from tests.support.chat_engines import QUESTIONS, RecordedChatRunner, asked, picture
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_the_engine_needs_no_more_than_the_protocol() -> None:
    runner = RecordedChatRunner(slots=2, slot_tokens=128)
    model: ChatModel = runner
    plan, options = model.card.full, SamplingOptions(2)
    ids = model.read(asked(QUESTIONS[0]), options)
    model.check(plan)
    model.check_length(ids, plan)
    features = model.encode(model.stack([picture(1)], plan), plan)
    visual = model.visual_tokens(features, plan, [QUESTIONS[0]])
    sequence: AnswerState = model.sequence(model.prompt_of(ids, visual), options)
    assert sequence.unfilled == len(ids) - 1 + model.visual_count(plan) and sequence.divisible
    (piece,) = model.prefill([sequence], [sequence.unfilled])
    assert piece is not None and model.free_slots == 1 and 0 < model.used_kv_bytes < model.kv_bytes
    prefix: KeptPrefix = model.read_prefix(sequence, ids, plan)
    assert len(prefix) == 17 and prefix.nbytes > 0 and len(prefix.cut(5, 0)) == 5
    model.compact([sequence])
    (piece,) = model.decode([sequence])
    assert piece.finish == "length" and model.logprobs(piece.choice)[0] is not None
    model.cancel([sequence])
    assert model.free_slots == model.slots == 2
    kept = model.cost(plan, 9, 1, 2, CachedParts(0, 1, 17)).total
    encoded = model.cost(plan, 9, 1, 2, CachedParts(1)).total
    assert kept < encoded < model.cost(plan, 9, 1, 2, CachedParts()).total
    assert model.is_blind(plan) and model.encoding(plan)
