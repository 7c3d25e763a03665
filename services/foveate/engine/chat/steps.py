"""The steps of answers on the device's thread: encode pictures, prefill prompts, decode one token each.

If a step fails, it runs again for each of its parts alone, so that only the faulty call fails. That costs at
most one small step for each part of the batch.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from foveate.core.plan import Plan
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.chat.runner import AnswerState, ChatModel, HasBytes, KeptPrefix, TokenPiece
from foveate.estimation.chat_latency import ChatStage

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class ChatStep:
    """What the device does next for one model."""

    stage: ChatStage | None
    """None: nothing but freeing slots."""
    plan: Plan
    """The plan of the calls; of a step of decoding, that of the call with the most tokens."""
    entries: tuple[ChatEntry, ...] = ()
    """The calls of a prefill or of a step of decoding, and those whose pictures are encoded."""
    counts: tuple[int, ...] = ()
    """Tokens to prefill of each prompt."""
    pictures: Mapping[bytes, Any] = field(default_factory=dict)
    """Pixels to encode, by the keys of their features. Equal pictures of several calls are one."""
    leaving: tuple[AnswerState, ...] = ()
    """Answers whose slots are freed before anything else."""
    repeats: int = 1
    """Steps of decoding to run at most before the scheduler decides again, while all answers go on."""
    holding: tuple[ChatEntry, ...] = ()
    """All calls that may have a slot, those that take no part included."""

    @property
    def size(self) -> int:
        """Pictures, tokens of prompts or answers: what the time of the step depends on."""
        return len(self.pictures) or sum(self.counts) or len(self.entries)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step has given. What failed has its exception in the place of a result."""

    entries: Sequence[ChatEntry] = ()
    """The calls that took part: those that ended or expired before the forward are left out."""
    pieces: Sequence[TokenPiece | Exception | None] = ()
    """The next token of each of them; None for one whose prompt is not complete."""
    features: Mapping[bytes, HasBytes | Exception] = field(default_factory=dict)
    prefixes: Mapping[ChatEntry, KeptPrefix] = field(default_factory=dict)
    """Keys and values of prompts, to be kept."""
    failed: bool = False
    """The step failed as a whole and ran again in parts: its time says nothing."""
    seconds: float = 0.0
    at: float = 0.0
    """When it was done; clock seconds."""


class StepRunner:
    """Runs the steps of one model. For the device's thread only."""

    def __init__(
        self, model: ChatModel, clock: Callable[[], float], others_wait: Callable[[], bool] = lambda: False
    ) -> None:
        """others_wait: whether another model waits for the device; any thread may call it."""
        self.model, self.clock, self.others_wait = model, clock, others_wait
        self.interrupted = False
        """Set on the event loop when the scheduler has to decide again: a call came or ended."""

    def run(self, step: ChatStep, deliver: Callable[[StepResult], object]) -> StepResult:
        """Free the slots of those that leave; then run the step.

        While nothing changes, the next step of decoding follows at once, and `deliver` gets the result of the
        last one: the event loop passes its tokens on meanwhile. The last result is returned.
        """
        self.model.cancel(step.leaving)
        left = step.repeats
        result = self._run_once(step)
        while left > 1 and self._all_go_on(step, result):
            deliver(result)
            result, left = self._run_once(step), left - 1
        return result

    def _all_go_on(self, step: ChatStep, result: StepResult) -> bool:
        """Whether another step for the same answers is what the scheduler would choose."""
        if self.interrupted or result.failed or self.others_wait():
            return False
        going_on = (sequence_of(entry).finish is None for entry in result.entries)
        return len(result.entries) == len(step.entries) and all(going_on)

    def _run_once(self, step: ChatStep) -> StepResult:
        """Run the step for the calls that are still of use.

        Deadlines are compared again here: the timer of an expired call, and this thread, may be late when the
        event loop is busy.
        """
        started = self.clock()
        entries = [entry for entry in step.entries if not entry.over and entry.deadline > started]
        if not entries:
            return StepResult()
        if step.stage == "encode":
            result = self._encode(step, entries)
        elif step.stage == "prefill":
            result = self._prefill(step, entries)
        else:
            result = self._decode(step, entries)
        now = self.clock()
        return replace(result, seconds=now - started, at=now)

    def _encode(self, step: ChatStep, entries: Sequence[ChatEntry]) -> StepResult:
        wanted = {key for entry in entries for key in entry.missing}
        keys = [key for key in step.pictures if key in wanted]

        def encode(some: Sequence[bytes]) -> Sequence[HasBytes]:
            stacked = self.model.stack([step.pictures[key] for key in some], step.plan)
            return self.model.encode(stacked, step.plan)

        results, failed = in_parts(encode, keys)
        features = dict(zip(keys, results, strict=True))
        return StepResult(entries, features=features, failed=failed)

    def _prefill(self, step: ChatStep, entries: Sequence[ChatEntry]) -> StepResult:
        counts = dict(zip(step.entries, step.counts, strict=True))
        built, failed = in_parts(self._build, [entry for entry in entries if entry.sequence is None])
        new = iter(built)
        ready: list[ChatEntry] = []
        errors: dict[ChatEntry, Exception] = {}
        for entry in entries:
            made = next(new) if entry.sequence is None else entry.sequence
            if isinstance(made, Exception):
                errors[entry] = made
            else:
                entry.sequence = made
                ready.append(entry)

        def prefill(some: Sequence[ChatEntry]) -> Sequence[TokenPiece | None]:
            sequences = [sequence_of(entry) for entry in some]
            parts = [
                min(counts[entry], sequence.unfilled) if sequence.divisible else sequence.unfilled
                for entry, sequence in zip(some, sequences, strict=True)
            ]
            return self.model.prefill(sequences, parts)

        pieces, again = in_parts(prefill, ready)
        results: dict[ChatEntry, TokenPiece | Exception | None] = dict(zip(ready, pieces, strict=True))
        prefixes = {
            entry: self.model.read_prefix(entry.sequence, entry.ids, step.plan)
            for entry, piece in results.items()
            if is_kept(entry, piece)
        }
        ordered = [errors.get(entry) or results[entry] for entry in entries]
        failed = failed or again or bool(errors)
        return StepResult(entries, ordered, prefixes=prefixes, failed=failed)

    def _build(self, entries: Sequence[ChatEntry]) -> Sequence[AnswerState]:
        """The answers of calls before their first tokens, from the features of their pictures."""
        features = [entry.features[key] for entry in entries for key in entry.feature_keys]
        questions = [entry.question for entry in entries for _ in entry.feature_keys]
        visual = iter(self.model.visual_tokens(features, entries[0].plan, questions) if features else ())
        return [
            self.model.sequence(
                self.model.prompt_of(entry.ids, [next(visual) for _ in entry.feature_keys], entry.prefix),
                entry.options,
            )
            for entry in entries
        ]

    def _decode(self, step: ChatStep, entries: Sequence[ChatEntry]) -> StepResult:
        self.model.compact([entry.sequence for entry in step.holding if entry.sequence is not None])
        # Neighbouring slots in order are read without a copy.
        entries = sorted(entries, key=lambda entry: sequence_of(entry).slot)

        def decode(some: Sequence[ChatEntry]) -> Sequence[TokenPiece]:
            return self.model.decode([sequence_of(entry) for entry in some])

        pieces, failed = in_parts(decode, entries)
        return StepResult(entries, pieces, failed=failed)


def sequence_of(entry: ChatEntry) -> AnswerState:
    """The answer of a call that was prefilled, or is."""
    if entry.sequence is None:
        raise RuntimeError("the call has no answer yet")
    return entry.sequence


def is_kept(entry: ChatEntry, piece: TokenPiece | Exception | None) -> bool:
    """Whether the beginning of a prompt is to be kept: its scores are finite, and it has not been kept."""
    if piece is None or isinstance(piece, Exception) or entry.sequence is None or entry.sequence.error:
        return False
    return bool(entry.prefix_digests and entry.feature_keys) and entry.sequence.slot >= 0


def in_parts(
    work: Callable[[Sequence[ItemT]], Sequence[ResultT]], items: Sequence[ItemT]
) -> tuple[list[ResultT | Exception], bool]:
    """The results of items, and whether they had to run one by one because together they failed."""
    if not items:
        return [], False
    try:
        results = work(items)
        if len(results) != len(items):
            raise ValueError(f"the model returned {len(results)} results for {len(items)} calls")
    except Exception as error:
        log.warning("a step of %d failed", len(items), exc_info=True)
        if len(items) == 1:
            return [error], True
        return [in_parts(work, [item])[0][0] for item in items], True
    return list(results), False
