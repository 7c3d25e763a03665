"""What serving adds to a vision-language model: prompts in parts, behind kept prefixes, in moving slots."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from foveate.core.chat import ImagePart, SamplingOptions, Turn
from foveate.core.errors import BadRequest, Overloaded
from foveate.core.plan import Plan
from foveate.models.vlm.key_value_cache import CachedPrefix
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.sequence import AnswerPiece, ChatSequence
from foveate.models.vlm.tokenizer import END, IMAGE
from tests.support.chat_engines import asked, checkpoint, picture, reference
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

QUESTION = "what is left of the fox?"
TWO = (*asked(QUESTION), Turn("assistant", ("a teacup.",)), Turn("user", ("and here?", ImagePart(), "why?")))
PLANS = ("full", "pool:4", "diverse:4", "merge:7", "merge:7:unmerge", "resolution:4")
OPTIONS = SamplingOptions(12)


@pytest.fixture
def runner() -> ChatRunner:
    return ChatRunner(checkpoint(), slots=4, slot_tokens=160)


def plan(runner: ChatRunner, text: str) -> Plan:
    return Plan.parse(text, runner.full)


def started(
    runner: ChatRunner,
    turns: Sequence[Turn],
    seeds: Sequence[int],
    chosen: Plan,
    prefix: CachedPrefix | None = None,
) -> ChatSequence:
    """The answer to a chat before its prefill. seeds: of the pictures behind the prefix."""
    visual = []
    if seeds:
        features = runner.encode(runner.stack([picture(seed) for seed in seeds], chosen), chosen)
        visual = runner.visual_tokens(features, chosen, [""] * len(seeds))
    return runner.sequence(runner.prompt_of(runner.read(turns, OPTIONS), visual, prefix), OPTIONS)


def finished(runner: ChatRunner, sequence: ChatSequence, parts: Sequence[int] = ()) -> str:
    """The answer. parts: tokens of the prefills, before one with the rest."""
    pieces: list[AnswerPiece | None] = []
    for count in parts:
        pieces += runner.prefill([sequence], [count])
    assert pieces == [None] * len(parts)
    runner.prefill([sequence])
    while sequence.finish is None:
        runner.decode([sequence])
    return sequence.text


def answer(turns: Sequence[Turn], seeds: Sequence[int], chosen: Plan) -> str:
    return reference().answer([picture(seed) for seed in seeds], turns, chosen, OPTIONS).text


@pytest.mark.parametrize("text", PLANS)
def test_a_prompt_behind_its_kept_beginning_gives_the_same_answer(runner: ChatRunner, text: str) -> None:
    chosen, ids = plan(runner, text), runner.tokenizer.chat(TWO)
    whole = started(runner, TWO, [1, 2], chosen)
    runner.prefill([whole])
    both = runner.read_prefix(whole, ids, chosen)
    runner.cancel([whole])
    count = runner.visual_count(chosen)
    first = 1 + count
    assert both.pictures == 2 and len(both) == ids.index(IMAGE, 2) - 1 + 2 * count
    prefixes: dict[CachedPrefix, list[int]] = {both: [], both.cut(first, 1): [2]}
    for prefix, rest in prefixes.items():
        sequence = started(runner, TWO, rest, chosen, prefix)
        assert len(sequence.prompt) == len(whole.prompt) and sequence.prompt.visual_tokens == 2 * count
        assert sequence.unfilled == len(whole.prompt) - len(prefix)
        assert finished(runner, sequence) == answer(TWO, [1, 2], chosen)
    # Another chat that begins with the first picture.
    other = asked("how many objects are there?")
    assert finished(runner, started(runner, other, [], chosen, both.cut(first, 1))) == answer(
        other, [1], chosen
    )
    assert runner.free_slots == 4


def test_the_pictures_behind_a_prefix_have_to_fit(runner: ChatRunner) -> None:
    whole = started(runner, TWO, [1, 2], runner.full)
    runner.prefill([whole])
    prefix = runner.read_prefix(whole, runner.tokenizer.chat(TWO), runner.full)
    with pytest.raises(BadRequest, match="names 1 pictures, and 2 were given"):
        runner.prompt_of(runner.tokenizer.chat(asked(QUESTION)), [], prefix)
    with pytest.raises(BadRequest, match="names 2 pictures, and 1 were given"):
        runner.prompt_of(runner.tokenizer.chat(TWO), [], prefix.cut(17, 1))


@pytest.mark.parametrize("parts", [(1,), (5, 7), (17, 1, 20)])
def test_a_prompt_in_parts_gives_the_same_answer(runner: ChatRunner, parts: Sequence[int]) -> None:
    sequence = started(runner, TWO, [1, 2], runner.full)
    assert sequence.divisible
    assert finished(runner, sequence, parts) == answer(TWO, [1, 2], runner.full)


def test_a_prompt_with_a_mask_runs_as_a_whole(runner: ChatRunner) -> None:
    sequence = started(runner, TWO, [1, 2], plan(runner, "merge:7:unmerge"))
    assert not sequence.divisible
    with pytest.raises(ValueError, match="runs as a whole"):
        runner.prefill([sequence], [5])
    assert runner.free_slots == 4


def test_parts_and_whole_prompts_share_a_prefill(runner: ChatRunner) -> None:
    long, short = (
        started(runner, TWO, [1, 2], runner.full),
        started(runner, asked(QUESTION), [3], runner.full),
    )
    pieces = runner.prefill([long, short], [9, short.unfilled])
    assert pieces[0] is None and pieces[1] is not None
    runner.prefill([long])
    for _ in range(11):
        runner.decode([long, short])
    assert (long.text, short.text) == (
        answer(TWO, [1, 2], runner.full), answer(asked(QUESTION), [3], runner.full),
    )  # fmt: skip


def test_answers_go_on_after_their_slots_have_moved(runner: ChatRunner) -> None:
    sequences = [
        started(runner, asked(QUESTION), [seed], plan(runner, "merge:7:unmerge")) for seed in range(4)
    ]
    runner.prefill(sequences)
    runner.cancel(sequences[:2])
    left = sequences[2:]
    runner.compact(left)
    assert sorted(each.slot for each in left) == [0, 1]
    for _ in range(11):
        runner.decode(left)
    expected = [answer(asked(QUESTION), [seed], plan(runner, "merge:7:unmerge")) for seed in (2, 3)]
    assert [each.text for each in left] == expected


def test_a_failed_step_changes_nothing(runner: ChatRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [started(runner, asked(QUESTION), [seed], runner.full) for seed in range(3)]
    runner.prefill(sequences[:1])
    begun = sequences.pop()
    runner.prefill([begun], [9])

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise ValueError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(runner.model, "logits", fail)
        with pytest.raises(ValueError, match="out of memory"):
            runner.decode(sequences[:1])
        with pytest.raises(ValueError, match="out of memory"):
            runner.prefill([begun, *sequences[1:]])
    assert runner.free_slots == 2 and sequences[1].slot < 0
    assert finished(runner, begun) == answer(asked(QUESTION), [2], runner.full)
    runner.prefill(sequences[1:])
    for _ in range(11):
        runner.decode(sequences)
    assert [each.text for each in sequences] == [answer(asked(QUESTION), [n], runner.full) for n in range(2)]


def test_a_slot_that_is_not_free_is_not_taken(runner: ChatRunner) -> None:
    sequences = [started(runner, asked(QUESTION), [seed], runner.full) for seed in range(5)]
    with pytest.raises(Overloaded):
        runner.prefill(sequences)
    assert runner.free_slots == 4 and all(each.slot < 0 for each in sequences)
    assert runner.used_kv_bytes == 0
    runner.prefill(sequences[:1])
    assert runner.used_kv_bytes == len(sequences[0].prompt) * runner.kv_bytes // (4 * 160)


def test_a_text_that_fits_no_slot_is_refused_before_it_is_encoded(
    runner: ChatRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runner.read(TWO, OPTIONS) == runner.tokenizer.chat(TWO)
    monkeypatch.setattr(runner.tokenizer, "encode", lambda _: pytest.fail("it was encoded"))
    with pytest.raises(BadRequest, match="characters, more than this model takes: it takes 159 tokens"):
        runner.read(asked("x" * 20_000), OPTIONS)


def test_lengths_are_checked_under_a_plan(runner: ChatRunner) -> None:
    ids = [IMAGE] * 8 + [7] * 100
    runner.check_length(ids, plan(runner, "pool:4"))
    with pytest.raises(BadRequest, match="228 tokens, 128 of them visual"):
        runner.check_length(ids, runner.full)


def test_tokens_are_written_as_text(runner: ChatRunner) -> None:
    options = SamplingOptions(4, top_logprobs=3)
    sequence = runner.sequence(runner.prompt(asked(QUESTION, 0), []), options)
    runner.prefill([sequence])
    choice = sequence.choices[0]
    chosen, alternatives = runner.logprobs(choice)
    assert chosen is not None and chosen == alternatives[0] and len(alternatives) == 3
    assert chosen.data == runner.tokenizer.token_bytes(choice.token)
    end, _ = runner.logprobs(type(choice)(END, -0.5))
    assert end is None
    half = next(n for n in range(len(runner.tokenizer)) if runner.tokenizer.token_bytes(n) == b"\xc3")
    part, _ = runner.logprobs(type(choice)(half, -0.5))
    assert part is not None and (part.token, part.data) == ("\\xc3", b"\xc3")


def test_methods_say_whether_they_are_blind(runner: ChatRunner) -> None:
    assert runner.is_blind(runner.full) and not runner.is_blind(plan(runner, "guided:4"))
    same = {runner.encoding(plan(runner, text)) for text in ("full", "pool:4", "guided:4", "merge:7")}
    assert len(same) == 1 and runner.encoding(plan(runner, "resolution:4")) not in same
