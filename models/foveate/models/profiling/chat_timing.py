"""Time the stages of a vision-language model: encoding pictures, prefill, and a step of decoding."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from foveate.core.plan import Plan
from foveate.models.profiling.chat_quality import EncodingKey, encoding_key, turns_of
from foveate.models.profiling.profile_state import ProfilingJob
from foveate.models.profiling.question_set import DecodedQuestions
from foveate.models.runners.base import Pixels
from foveate.models.vlm import generation
from foveate.models.vlm.prompt import ChatPrompt
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.visual_tokens import PictureFeatures

ENCODE, PREFILL, DECODE = "encode", "prefill", "decode"
STAGES = (ENCODE, PREFILL, DECODE)
StageTimes = Mapping[str, Mapping[int, float]]
"""Seconds of a batch by stage and batch size."""
ChatRound = Mapping[str, StageTimes]
"""Those of each plan, in one round."""
DECODE_STEPS = 4
"""Steps over which the time of one is averaged."""
ANY_TOKEN = 0
"""The token that steps add: which one it is does not change their time."""


class TimingRound:
    """The times of one round. Every plan gets the same questions, the next ones of a seeded order."""

    def __init__(self, runner: ChatRunner, data: DecodedQuestions, job: ProfilingJob, number: int) -> None:
        self._runner, count = runner, max(job.batch_sizes)
        order = np.random.default_rng(job.seed).permutation(len(data.asked))
        chosen = order.take(range(number * count, (number + 1) * count), mode="wrap").tolist()
        self._pictures = data.images.at(data.asked[index][0] for index in chosen)
        self._questions = [data.asked[index][1].question for index in chosen]
        self._features: dict[EncodingKey, list[PictureFeatures]] = {}
        self._encode: dict[tuple[EncodingKey, int], float] = {}

    def seconds(self, plan: Plan, size: int) -> tuple[float, float, float]:
        """Seconds of each of STAGES. Plans that encode pictures alike share the time of encoding."""
        runner, key = self._runner, encoding_key(self._runner, plan)
        if key not in self._features:
            self._features[key] = runner.encode(runner.stack(self._pictures, plan), plan)
        if (key, size) not in self._encode:
            self._encode[key, size] = encode_seconds(runner, plan, self._pictures, size)
        answer = answer_seconds(runner, plan, self._features[key], self._questions, size)
        return self._encode[key, size], *answer


def encode_seconds(runner: ChatRunner, plan: Plan, pictures: Sequence[Pixels], size: int) -> float:
    """Mean seconds to encode a batch of this size, over the whole batches that these pictures make."""
    batches = [runner.stack(pictures[first : first + size], plan) for first in _starts(pictures, size)]
    runner.encode(batches[0], plan)  # untimed: it prepares kernels
    return statistics.fmean(_seconds(runner, partial(runner.encode, batch, plan)) for batch in batches)


def answer_seconds(
    runner: ChatRunner, plan: Plan, features: Sequence[PictureFeatures], questions: Sequence[str], size: int
) -> tuple[float, float]:
    """Mean seconds of a prefill and of one decoding step, for batches of this size.

    The prefill begins with the features of pictures: it includes the projector and the compression method.
    questions: one for each picture.
    """
    prefills: list[float] = []
    steps: list[float] = []
    starts = _starts(features, size)
    for number, first in enumerate((starts[0], *starts)):
        encoded, asked = features[first : first + size], questions[first : first + size]
        with _slots(runner, size) as slots:
            prompts: list[ChatPrompt] = []
            prefill = _seconds(runner, partial(_prefill, runner, plan, encoded, asked, slots, prompts))
            step = _decode_seconds(runner, prompts, slots)
        if number:  # the first run prepares kernels
            prefills.append(prefill)
            steps.append(step)
    return statistics.fmean(prefills), statistics.fmean(steps)


def _starts(items: Sequence[object], size: int) -> range:
    return range(0, len(items) - size + 1, size)


@contextmanager
def _slots(runner: ChatRunner, count: int) -> Iterator[list[int]]:
    """Empty slots of the cache."""
    slots = [runner.cache.allocate() for _ in range(count)]
    try:
        yield slots
    finally:
        for slot in slots:
            runner.cache.free(slot)


def _prefill(
    runner: ChatRunner,
    plan: Plan,
    features: Sequence[PictureFeatures],
    questions: Sequence[str],
    slots: Sequence[int],
    prompts: list[ChatPrompt],
) -> None:
    """Put prompts into empty slots, from the features of their pictures, and add them to `prompts`."""
    visual = runner.visual_tokens(features, plan, questions)
    prompts += [runner.prompt(turns_of(q), [v]) for q, v in zip(questions, visual, strict=True)]
    generation.prefill(runner.model, runner.cache, prompts, slots)


def _decode_seconds(runner: ChatRunner, prompts: Sequence[ChatPrompt], slots: Sequence[int]) -> float:
    """Mean seconds of a step behind prompts in these slots."""

    def steps() -> None:
        for number in range(DECODE_STEPS):
            positions = [prompt.next_position + number for prompt in prompts]
            generation.decode(runner.model, runner.cache, [ANY_TOKEN] * len(slots), positions, slots)

    return _seconds(runner, steps) / DECODE_STEPS


def _seconds(runner: ChatRunner, call: Callable[[], object]) -> float:
    """Seconds of a call, until the device has finished."""
    _synchronise(runner)
    started = time.perf_counter()
    call()
    _synchronise(runner)
    return time.perf_counter() - started


def _synchronise(runner: ChatRunner) -> None:
    """Wait until the device has finished."""
    if runner.device.type == "cuda":
        torch.cuda.synchronize(runner.device)
