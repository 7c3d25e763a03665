"""The speed-up of the prefill and of the first token at few visual tokens, within one run."""

import statistics
import time
from collections.abc import Callable

from foveate.core.plan import Plan
from foveate.models.profiling.chat_quality import turns_of
from foveate.models.profiling.question_set import DecodedQuestions
from foveate.models.vlm import generation
from foveate.models.vlm.prompt import ChatPrompt
from foveate.models.vlm.runner import ChatRunner
from loadtests.report import Figures

BATCH, ROUNDS, REPEATS = 8, 3, 3
FEW = "pool:16"


def measure(runner: ChatRunner, data: DecodedQuestions) -> Figures:
    """Milliseconds of a batch and speed-ups of FEW over full: medians of interleaved rounds.

    `prefill` is the language model alone; `first token` begins with the pixels of the pictures.
    """
    first = {number: asked.question for number, asked in reversed(data.asked)}
    numbers = [index % len(data.images) for index in range(BATCH)]
    pictures, questions = data.images.at(numbers), [first[number] for number in numbers]
    plans = {"full": runner.full, "16": Plan.parse(FEW, runner.full)}

    def prompts(plan: Plan) -> list[ChatPrompt]:
        features = runner.encode(runner.stack(pictures, plan), plan)
        visual = runner.visual_tokens(features, plan, questions)
        return [runner.prompt(turns_of(q), [v]) for q, v in zip(questions, visual, strict=True)]

    ready = {name: prompts(plan) for name, plan in plans.items()}
    ways: dict[str, Callable[[], list[ChatPrompt]]] = {}
    for name, plan in plans.items():
        ways[f"prefill {name}"] = lambda name=name: ready[name]  # type: ignore[misc]
        ways[f"first token {name}"] = lambda plan=plan: prompts(plan)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            seconds = min(_seconds(runner, way) for _ in range(REPEATS))
            if number:  # the first round prepares kernels
                times[name].append(seconds)
    figures = {f"{name} ms": round(1e3 * statistics.median(values), 2) for name, values in times.items()}
    for key, part in (("prefill_speedup_16", "prefill"), ("first_token_speedup_16", "first token")):
        pairs = zip(times[f"{part} full"], times[f"{part} 16"], strict=True)
        figures[key] = round(statistics.median(full / few for full, few in pairs), 2)
    return figures


def _seconds(runner: ChatRunner, way: Callable[[], list[ChatPrompt]]) -> float:
    """Seconds to make prompts and to prefill them."""
    slots = [runner.cache.allocate() for _ in range(BATCH)]
    started = time.perf_counter()
    generation.prefill(runner.model, runner.cache, way(), slots)
    seconds = time.perf_counter() - started
    for slot in slots:
        runner.cache.free(slot)
    return seconds
