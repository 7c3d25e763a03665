"""Generation: answers equal those of transformers' `generate`, and sequences of a batch do not interact."""

from typing import Any

import pytest
import torch

from foveate.core.chat import SamplingOptions
from foveate.core.errors import Overloaded, RunFailed
from foveate.models.vlm.generation import decode, generate, prefill, start, step
from foveate.models.vlm.sequence import AnswerPiece, ChatSequence
from foveate.models.vlm.tokenizer import END
from tests.support.chat_sequences import CHATS, model, prompt, sequence, slots, tokens
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def reference(chat: str, length: int) -> list[int]:
    """The answer of transformers' generate."""
    given = prompt(chat)
    answer = model().decoder.generate(
        inputs_embeds=given.embedded[None],
        position_ids=given.positions[None],
        attention_mask=torch.ones(1, len(given), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=END,
        pad_token_id=0,
    )
    generated: list[int] = answer[0].tolist()
    return generated


@pytest.mark.parametrize("chat", CHATS)
def test_greedy_answers_are_those_of_transformers(chat: str) -> None:
    own = sequence(chat, SamplingOptions(24))
    generate(model(), slots(1), [own])
    assert tokens(own) == reference(chat, 24)
    assert len(set(tokens(own))) > 3  # the answer is not one token again and again


def test_answers_of_a_batch_are_those_of_each_sequence_alone() -> None:
    together = [sequence(chat) for chat in CHATS]
    generate(model(), slots(len(CHATS)), together)
    for chat, own in zip(CHATS, together, strict=True):
        alone = sequence(chat)
        generate(model(), slots(1), [alone])
        assert tokens(own) == tokens(alone)
        assert own.text == alone.text
        for one, other in zip(own.choices, alone.choices, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_scores_of_a_batch_are_those_of_each_sequence_alone() -> None:
    shared = slots(8)
    prompts = [prompt(chat) for chat in CHATS]
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    scores = prefill(model(), shared, prompts, order)
    subset = [6, 0, 3]
    later = decode(
        model(), shared, [30] * 3, [prompts[i].next_position for i in subset], [order[i] for i in subset]
    )
    for row, given in enumerate(prompts):
        own = slots(1)
        torch.testing.assert_close(prefill(model(), own, [given], [0])[0], scores[row], rtol=0, atol=1e-4)
        if row in subset:
            alone = decode(model(), own, [30], [given.next_position], [0])[0]
            torch.testing.assert_close(alone, later[subset.index(row)], rtol=0, atol=1e-4)
    assert [shared.lengths[order[i]] - len(prompts[i]) for i in range(8)] == [i in subset for i in range(8)]


def test_sequences_join_and_leave_between_steps() -> None:
    """The steps of a scheduler: one sequence more at each step, and compaction where one leaves."""
    shared, waiting = slots(3), [sequence(chat, SamplingOptions(3 + i)) for i, chat in enumerate(CHATS)]
    everything, running = list(waiting), list[ChatSequence]()
    steps = 0
    while waiting or running:
        if running:
            step(model(), shared, running)
        running = [each for each in running if each.finish is None]
        if steps % 2:
            moved = shared.compact()
            for each in running:
                each.slot = moved.get(each.slot, each.slot)
        if waiting and shared.free_slots:
            joining = waiting.pop(0)
            start(model(), shared, [joining])
            running += [joining] if joining.finish is None else []
        steps += 1
    assert shared.free_slots == 3 and shared.lengths == [0, 0, 0]
    for number, chat in enumerate(CHATS):
        alone = sequence(chat, SamplingOptions(3 + number))
        generate(model(), slots(1), [alone])
        assert tokens(everything[number]) == tokens(alone)


def test_a_sequence_with_nan_fails_alone() -> None:
    chats = ("one picture", "several turns", "no picture")
    broken = [sequence(chat) for chat in chats]
    broken[1].prompt.embedded[5] = torch.nan
    shared = slots(3)
    generate(model(), shared, broken)
    assert isinstance(broken[1].error, RunFailed)
    assert (broken[1].finish, broken[1].text, broken[1].choices) == ("error", "", [])
    for place in (0, 2):
        alone = sequence(chats[place])
        generate(model(), slots(1), [alone])
        assert broken[place].error is None
        assert tokens(broken[place]) == tokens(alone)
    # Nothing of it stays in the slot.
    again = [sequence(chat) for chat in chats]
    generate(model(), shared, again)
    assert all(each.error is None for each in again)


def test_the_answer_ends_where_its_slot_is_full() -> None:
    given = prompt("one picture")
    own = sequence("one picture", SamplingOptions(1000))
    generate(model(), slots(1, len(given) + 5), [own])
    assert (own.finish, len(own.choices)) == ("length", 5)


def test_sampled_answers_depend_on_their_seed_alone() -> None:
    options = [SamplingOptions(12, 1.0, 0.9, seed) for seed in (1, 2, 1, 3)]
    together = [sequence("one picture", each) for each in options]
    generate(model(), slots(4), together)
    answers = [tokens(each) for each in together]
    assert answers[0] == answers[2]
    assert len({tuple(answer) for answer in answers}) == 3
    alone = sequence("one picture", options[3])
    generate(model(), slots(1), [alone])
    assert tokens(alone) == answers[3]


def test_slots_are_free_after_a_failure() -> None:
    shared = slots(2)
    with pytest.raises(Overloaded, match="all 2 slots"):
        generate(model(), shared, [sequence("one picture") for _ in range(3)])
    assert shared.free_slots == 2

    def refuse(own: ChatSequence, piece: AnswerPiece) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        generate(model(), shared, [sequence("one picture") for _ in range(2)], refuse)
    assert shared.free_slots == 2


def test_no_sequences_take_no_step() -> None:
    generate(model(), slots(1), [])
