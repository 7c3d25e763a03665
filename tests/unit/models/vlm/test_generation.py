"""Generation: answers equal those of transformers' `generate`, and sequences of a batch do not interact."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.core.chat import ImagePart, SamplingOptions, Turn
from foveate.core.errors import BadRequest, Overloaded, RunFailed
from foveate.models.vlm.generation import (
    AnswerPiece,
    ChatPrompt,
    ChatSequence,
    build_prompt,
    cancel,
    decode,
    generate,
    prefill,
    start,
    step,
)
from foveate.models.vlm.key_value_cache import CacheShape, KeyValueCache
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.tokenizer import END, ChatTokenizer
from tests.support import chat_models
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

LENGTH = 160
PICTURE = ImagePart()
QUESTION = Turn("user", (PICTURE, "what is left of the fox?"))
CHATS: dict[str, tuple[Sequence[Turn], Sequence[int]]] = {
    "no picture": ((Turn("user", ("how many objects are there?",)),), ()),
    "one picture": ((QUESTION,), (16,)),
    "one token": ((QUESTION,), (1,)),
    "two pictures": ((Turn("user", (PICTURE, PICTURE, "what is left?")),), (49, 4)),
    "several turns": (
        (QUESTION, Turn("assistant", ("a teacup.",)), Turn("user", ("and how many objects?",))), (9,),
    ),
    "a picture in each turn": (
        (QUESTION, Turn("assistant", ("a fox.",)), Turn("user", ("and here?", PICTURE, "three?"))), (9, 25),
    ),
    "a system prompt": ((Turn("system", ("you are a helpful assistant.",)), QUESTION), (16,)),
    "an empty question": ((Turn("user", (PICTURE, "")),), (4,)),
}  # fmt: skip
"""Turns, and the visual tokens of each picture."""


@cache
def words() -> ChatTokenizer:
    return chat_models.tokenizer()


@cache
def model() -> VisionLanguageModel:
    return chat_models.model(len(words()))


def visual(counts: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 32, generator=generator) for count in counts]


def prompt(chat: str) -> ChatPrompt:
    turns, counts = CHATS[chat]
    return build_prompt(model(), words().chat(turns), visual(counts))


def slots(count: int, length: int = LENGTH) -> KeyValueCache:
    return KeyValueCache(CacheShape.of(chat_models.decoder_spec(len(words())), count, length))


def sequence(chat: str, options: SamplingOptions | None = None) -> ChatSequence:
    return ChatSequence(prompt(chat), options or SamplingOptions(12), words())


def tokens(answer: ChatSequence) -> list[int]:
    return [choice.token for choice in answer.choices]


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


def test_a_prompt_may_be_prefilled_in_parts() -> None:
    given, shared = prompt("two pictures"), slots(2)
    whole = prefill(model(), shared, [given], [0])
    other = prompt("one picture")
    parts = [ChatPrompt(given.embedded[a:b], given.positions[a:b], 0) for a, b in ((0, 30), (30, len(given)))]
    prefill(model(), shared, parts[:1], [1])
    own = slots(2)
    prefill(model(), own, parts[:1], [1])
    mixed = prefill(model(), own, [other, parts[1]], [0, 1])
    torch.testing.assert_close(mixed[1], whole[0], rtol=0, atol=1e-4)
    alone = prefill(model(), slots(1), [other], [0])
    torch.testing.assert_close(mixed[0], alone[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(prefill(model(), shared, parts[1:], [1]), whole, rtol=0, atol=1e-4)


def test_a_mask_that_counts_copies_equals_copies() -> None:
    """The text sees a token with the logarithm of 3 added to its scores as three equal tokens."""
    text = prompt("no picture")
    length = len(text) + 1
    embedded = torch.cat([visual((1,))[0], text.embedded])
    positions = torch.arange(length)
    copies = torch.tensor([3, *[1] * len(text)])
    expanded = ChatPrompt(embedded.repeat_interleave(copies, 0), positions.repeat_interleave(copies), 3)
    mask = torch.zeros(length, length).masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf)
    mask[1:, 0] = torch.tensor(3.0).log()
    counted = ChatPrompt(embedded, positions, 1, mask)
    own, shared = slots(1), slots(2)
    scores = prefill(model(), own, [expanded], [0])
    both = prefill(model(), shared, [prompt("several turns"), counted], [0, 1])
    torch.testing.assert_close(both[1], scores[0], rtol=0, atol=1e-4)
    scores = decode(model(), own, [30], [length], [0])
    both = decode(model(), shared, [30, 30], [60, length], [0, 1])
    torch.testing.assert_close(both[1], scores[0], rtol=0, atol=1e-4)
    plain = ChatPrompt(embedded, positions, 1)
    assert not torch.allclose(
        prefill(model(), slots(1), [plain], [0])[0], prefill(model(), slots(1), [counted], [0])[0]
    )
    # A row without a mask is not changed by one that has it.
    alone = slots(1)
    prefill(model(), alone, [prompt("several turns")], [0])
    torch.testing.assert_close(both[0], decode(model(), alone, [30], [60], [0])[0], rtol=0, atol=1e-4)


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


def test_the_answer_ends_where_its_slot_is_full() -> None:
    given = prompt("one picture")
    own = sequence("one picture", SamplingOptions(1000))
    generate(model(), slots(1, len(given) + 5), [own])
    assert (own.finish, len(own.choices)) == ("length", 5)


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


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    given = prompt("one picture")
    shared = slots(2, len(given))
    with pytest.raises(BadRequest, match=f"has {len(given)} tokens, 16 of them visual, and this model takes"):
        generate(model(), shared, [sequence("one picture")])
    assert shared.free_slots == 2


def test_pictures_have_their_places() -> None:
    ids = words().chat(CHATS["two pictures"][0])
    with pytest.raises(BadRequest, match="names 2 pictures, and 1 were given"):
        build_prompt(model(), ids, visual((4,)))
    given = prompt("two pictures")
    assert given.positions[:54].tolist() == [0, *[1] * 49, *[2] * 4]
    assert given.positions[54:].tolist() == list(range(3, 3 + len(given) - 54))
    assert given.visual_tokens == 53


def test_no_sequences_take_no_step() -> None:
    generate(model(), slots(1), [])
