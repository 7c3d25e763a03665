"""Steps on the device's thread: isolation of failures, calls that are of no use any more, bursts."""

from collections.abc import Sequence
from typing import Any

import pytest

from foveate.core.chat import SamplingOptions
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.chat.steps import ChatStep, StepResult, StepRunner, in_parts, is_kept
from foveate.scheduling.chat_state import CallLoad
from tests.support.chat_engines import QUESTIONS, RecordedChatRunner, chat_call, expected
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

QUESTION = QUESTIONS[1]


@pytest.fixture
def runner() -> RecordedChatRunner:
    return RecordedChatRunner(slots=4, slot_tokens=256)


def staged(runner: RecordedChatRunner, seed: int, tokens: int = 20, deadline: float = 99.0) -> ChatEntry:
    """A call about one picture whose plan is chosen."""
    call = chat_call(QUESTION, [seed], options=SamplingOptions(tokens))
    entry = ChatEntry(
        call, runner.tokenizer.chat(call.turns), 0.0, (0,), 0.0, lambda _, __: CallLoad(1, 1), runner.full
    )
    entry.deadline, entry.feature_keys = deadline, [bytes([seed])]
    entry.prefix_digests, entry.left_tokens = [bytes([seed])], 99
    return entry


def run(steps: StepRunner, step: ChatStep) -> list[StepResult]:
    """All results, the last one at the end."""
    results: list[StepResult] = []
    results.append(steps.run(step, results.append))
    return results


def prefilled(steps: StepRunner, entries: Sequence[ChatEntry]) -> StepResult:
    plan = entries[0].plan
    pictures = {key: pixels for entry in entries for key, pixels in entry.missing.items()}
    (encoded,) = run(steps, ChatStep("encode", plan, tuple(entries), pictures=pictures))
    for entry in entries:
        for key in entry.feature_keys:
            features = encoded.features[key]
            assert not isinstance(features, Exception)
            entry.features[key] = features
    (result,) = run(steps, ChatStep("prefill", plan, tuple(entries), (99,) * len(entries)))
    return result


def test_steps_give_the_answers_of_the_runner(runner: RecordedChatRunner) -> None:
    steps, entries = StepRunner(runner, lambda: 0.0), [staged(runner, seed) for seed in (1, 3)]
    result = prefilled(steps, entries)
    assert set(result.prefixes) == set(entries) and len(result.prefixes[entries[0]]) == 17
    texts = ["".join(piece.text for piece in [p] if piece) for p in result.pieces]  # type: ignore[union-attr]
    for _ in range(19):
        (result,) = run(steps, ChatStep("decode", runner.full, tuple(entries), holding=tuple(entries)))
        for row, piece in enumerate(result.pieces):
            assert piece is not None and not isinstance(piece, Exception)
            texts[entries.index(result.entries[row])] += piece.text
    assert texts == [expected(entry.call, runner.full) for entry in entries]


def test_calls_that_ended_or_expired_are_left_out(runner: RecordedChatRunner) -> None:
    now = [0.0]
    steps = StepRunner(runner, lambda: now[0])
    left, expired, over = staged(runner, 1), staged(runner, 2, deadline=5.0), staged(runner, 3)
    now[0] = 5.0
    over.end(None, "cancelled")
    assert not prefilled_entries(steps, [expired, over])
    assert runner.steps == []
    assert prefilled_entries(steps, [left, expired, over]) == [left]
    assert [size for stage, size in runner.steps if stage == "encode"] == [1]


def prefilled_entries(steps: StepRunner, entries: Sequence[ChatEntry]) -> Sequence[ChatEntry]:
    pictures = {key: pixels for entry in entries for key, pixels in entry.missing.items()}
    return run(steps, ChatStep("encode", entries[0].plan, tuple(entries), pictures=pictures))[0].entries


def test_slots_are_freed_first(runner: RecordedChatRunner) -> None:
    steps, entries = StepRunner(runner, lambda: 0.0), [staged(runner, seed) for seed in range(4)]
    prefilled(steps, entries)
    gone = entries[0].sequence
    assert gone is not None and runner.free_slots == 0
    (result,) = run(steps, ChatStep(None, runner.full, leaving=(gone,)))
    assert not result.entries and runner.free_slots == 1
    (result,) = run(steps, ChatStep("decode", runner.full, tuple(entries[1:]), holding=tuple(entries[1:])))
    assert not runner.reads_copies[-1]
    slots = [entry.sequence.slot for entry in result.entries if entry.sequence]
    assert slots == [0, 1, 2]


def test_steps_of_decoding_repeat_while_all_go_on(runner: RecordedChatRunner) -> None:
    waits = [False]
    steps = StepRunner(runner, lambda: 0.0, lambda: waits[0])
    entries: tuple[ChatEntry, ...] = (staged(runner, 1), staged(runner, 3, tokens=8))
    prefilled(steps, entries)

    def burst(repeats: int) -> int:
        return len(run(steps, ChatStep("decode", runner.full, entries, repeats=repeats, holding=entries)))

    assert burst(3) == 3
    steps.interrupted = True
    assert burst(3) == 1
    steps.interrupted, waits[0] = False, True
    assert burst(3) == 1
    waits[0] = False
    assert burst(9) == 2  # one answer has its 8 tokens then
    entries = entries[:1]
    assert burst(99) == 12


def test_a_burst_stops_when_an_answer_fails(runner: RecordedChatRunner) -> None:
    steps, entries = StepRunner(runner, lambda: 0.0), (staged(runner, 1), staged(runner, 3))
    prefilled(steps, entries)
    faulty = entries[1].sequence

    def fail(stage: str, part: Any) -> None:
        if stage == "decode" and faulty in part:
            raise ValueError("a poisoned step")

    runner.before = fail
    (result,) = run(steps, ChatStep("decode", runner.full, entries, repeats=9, holding=entries))
    assert result.failed
    failures = dict(zip(result.entries, result.pieces, strict=True))
    assert isinstance(failures[entries[1]], ValueError) and not isinstance(failures[entries[0]], Exception)


def test_a_batch_that_fails_costs_one_small_step_for_each_part() -> None:
    batches: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        if 3 in items:
            raise ValueError("three")
        return [10 * item for item in items]

    results, failed = in_parts(work, [1, 2, 3, 4])
    assert failed and batches == [[1, 2, 3, 4], [1], [2], [3], [4]]
    assert results[:2] == [10, 20] and isinstance(results[2], ValueError) and results[3] == 40
    assert in_parts(work, [1, 2]) == ([10, 20], False)
    assert in_parts(work, []) == ([], False)


def test_too_few_results_are_a_failure() -> None:
    results, failed = in_parts(lambda items: list(items)[: max(1, len(items) - 1)], [1, 2, 3])
    assert failed and results == [1, 2, 3]


def test_what_failed_or_is_kept_already_is_not_kept(runner: RecordedChatRunner) -> None:
    steps, entry = StepRunner(runner, lambda: 0.0), staged(runner, 1)
    result = prefilled(steps, [entry])
    (piece,) = result.pieces
    assert is_kept(entry, piece)
    assert not is_kept(entry, None) and not is_kept(entry, ValueError())
    entry.feature_keys = []  # all pictures are in a kept prefix
    assert not is_kept(entry, piece)
