"""The contract of runners with the engine, and the engine's batches of them under mixed traffic."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import BadPlan, FoveateError, RunFailed
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec, Task
from foveate.core.outcome import Outcome, Result
from foveate.core.plan import Plan
from foveate.core.request import Request
from foveate.engine.engine import Engine
from foveate.engine.result_check import ResultCheck
from foveate.engine.runner import HasExplanations, Runner
from foveate.models import huggingface
from foveate.models.layers.config import ViTConfig
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.preprocessing import Preprocessing
from tests.support.fake_runner import HALF, FakeRunner

T = TypeVar("T")
CONFIG = ViTConfig(image_size=64, width=24, depth=6, heads=2, classes=5)
WHITE = np.full((64, 64, 3), 255, np.uint8)
"""The image for which the torch models below give NaN."""
WHITE_CLIP = np.full((8, *WHITE.shape), 255, np.uint8)


pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def tiny() -> Checkpoint:
    """A random model whose results differ between images, and are NaN for a white one."""
    model, generator = ElasticViT(CONFIG).eval(), torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)

    def spoil(_: object, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        white = (inputs[0] > 0.999).flatten(1).all(1)
        return output.masked_fill(white[:, None, None], torch.nan)

    model.patch_embed.register_forward_hook(spoil)
    return Checkpoint("tiny", CONFIG, model=model)


def random_image(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def random_clip(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, WHITE_CLIP.shape, dtype=np.uint8)


def pretrained_runner(name: str) -> Runner:
    """A random model of transformers that gives NaN for white images too."""
    from tests.support import pretrained  # imported here, since it needs transformers

    side = WHITE.shape[0]
    model = pretrained.settled(getattr(pretrained, name)())

    def spoil(_: object, inputs: tuple[Tensor], output: Any) -> Any:
        white = (inputs[0] > 0.999).flatten(1).all(1)
        logits = output["logits"]
        output["logits"] = logits.masked_fill(white.view(-1, *[1] * (logits.ndim - 1)), torch.nan)
        return output

    model.register_forward_hook(spoil)
    pixels = Preprocessing(side, InputSpec(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    task: Task = "segment" if name == "segformer" else "classify"
    checkpoint = huggingface.Pretrained(name, model, task, pretrained.LABELS, False, pixels)
    return huggingface.runner(checkpoint, max_batch=4)


@dataclass(frozen=True)
class RunnerCase:
    """A runner under test, and media for it."""

    make: Callable[[], Runner]
    media: Callable[[int], Any]
    """An item that the runner accepts, by seed."""
    plans: tuple[str, ...]
    bad: tuple[Any, ...]
    """Items that must fail alone."""


class EchoRunner(FakeRunner):
    """The fake runner, with scores that depend on the items."""

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        share = 1.0 if plan == HALF else 0.5
        super().run(batch, plan)
        scores = [np.array([share * int(item) / 100, 1], np.float32) for item in batch]
        return [Result(row, 5, 12, 0.5) for row in scores]


CASES = {
    "fake": RunnerCase(lambda: FakeRunner(), str, ("full", "evit:0.5"), ("poison",)),
    "echo": RunnerCase(lambda: EchoRunner(), str, ("full", "evit:0.5"), ("poison",)),
    "torch": RunnerCase(
        lambda: TorchRunner(tiny(), max_batch=4),
        random_image,
        ("full", "evit:0.7", "evit:0.3", "depth:3", "evit:0.5/depth:4"),
        (WHITE, WHITE[:32], WHITE[..., :1], WHITE[:0]),
    ),
}
if find_spec("transformers"):
    CASES |= {
        "segformer": RunnerCase(
            lambda: pretrained_runner("segformer"),
            random_image,
            ("full", "segformer@32"),
            (WHITE, WHITE[:32], WHITE[..., :1], WHITE[:0]),
        ),
        "videomae": RunnerCase(
            lambda: pretrained_runner("videomae"),
            random_clip,
            ("full", "frames:4", "frames:2", "videomae@32/frames:4"),
            (WHITE_CLIP, WHITE_CLIP[:4], WHITE_CLIP[0], WHITE_CLIP[:, :32]),
        ),
    }
every_runner = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def run_alone(runner: Runner, media: Any, plan: Plan) -> Result:
    (result,) = runner.run(runner.stack([media], plan), plan)
    assert isinstance(result, Result)
    assert ResultCheck(runner.card)(result, features=True) is result
    return result


def same(actual: Result, expected: Result) -> bool:
    costs = (actual.tokens, actual.exit_layer, actual.gflops)
    close = bool(np.abs(actual.scores - expected.scores).max() < 1e-5)
    return close and costs == (expected.tokens, expected.exit_layer, expected.gflops)


@every_runner
def test_one_result_per_item_in_order_for_each_batch_size(case: RunnerCase) -> None:
    runner = case.make()
    for text in case.plans:
        plan = runner.card.plan(text)
        runner.check(plan)
        for size in range(1, runner.max_batch + 1):
            media = [case.media(seed) for seed in range(size)]
            results = runner.run(runner.stack(media, plan), plan)
            assert len(results) == size
            for item, result in zip(media, results, strict=True):
                assert isinstance(result, Result)
                assert same(result, run_alone(runner, item, plan))


@every_runner
def test_results_agree_with_the_card(case: RunnerCase) -> None:
    runner = case.make()
    card = runner.card
    assert card.ladder[-1].plan == card.full
    classes = len(card.labels) + (card.task == "segment")  # the background is one more
    assert [r.gflops for r in card.ladder] == sorted(r.gflops for r in card.ladder)
    for rung in card.ladder:
        runner.check(rung.plan)
        result = run_alone(runner, case.media(1), rung.plan)
        assert result.scores.shape == (classes,)
        assert result.scores.dtype == np.float32
        assert result.gflops > 0


def test_ladder_has_the_tokens_and_cost_of_the_torch_runner() -> None:
    runner = TorchRunner(tiny())
    assert len(runner.card.ladder) > 2
    for rung in runner.card.ladder:
        result = run_alone(runner, random_image(1), rung.plan)
        assert (result.tokens, result.gflops) == (rung.tokens, rung.gflops)
        assert result.exit_layer == CONFIG.depth
        assert abs(float(result.scores.sum()) - 1) < 1e-5


@every_runner
def test_plans_that_cannot_run_are_refused_by_check(case: RunnerCase) -> None:
    runner = case.make()
    full = runner.card.full
    for wrong in (
        replace(full, variant="another-model"),
        replace(full, depth=99),
        replace(full, reducer="warp:9"),
        replace(full, reducer="evit:7"),
        replace(full, precision="bf16"),
        replace(full, image_size=33),
        replace(full, image_size=full.image_size * 4),
        replace(full, exit="0.9"),
    ):
        with pytest.raises(BadPlan) as refused:
            runner.check(wrong)
        assert "\n" not in refused.value.detail


@every_runner
def test_stack_does_not_change_the_media(case: RunnerCase) -> None:
    runner = case.make()
    media = [case.media(1), case.media(2)]
    runner.run(runner.stack(media, runner.card.full), runner.card.full)
    assert all(np.array_equal(was, case.media(n)) for n, was in enumerate(media, start=1))


def test_explanations_are_independent_and_agree_with_results() -> None:
    runner = TorchRunner(tiny())
    media = [random_image(seed) for seed in range(3)]
    for text in CASES["torch"].plans:
        plan = runner.card.plan(text)
        explanations = runner.explain(media, plan)
        assert len(explanations) == len(media)
        for item, explanation in zip(media, explanations, strict=True):
            result = run_alone(runner, item, plan)
            assert explanation.exit_layer == result.exit_layer
            assert [stage.tokens for stage in explanation.stages[-1:]] in ([], [result.tokens])
            assert bool(explanation.stages) == (result.tokens < 17)
            assert runner.explain([item], plan) == [explanation]
    assert len(set(runner.explain(media, runner.card.plan("evit:0.3")))) == len(media)


def test_explanations_are_detected_by_protocol() -> None:
    assert isinstance(TorchRunner(tiny()), HasExplanations)
    assert not isinstance(FakeRunner(), HasExplanations)


def test_image_without_finite_scores_fails_alone() -> None:
    runner = TorchRunner(tiny())
    plan = runner.card.full
    good, bad, fine = runner.run(runner.stack([random_image(1), WHITE, random_image(2)], plan), plan)
    assert isinstance(bad, RunFailed)
    assert isinstance(good, Result)
    assert isinstance(fine, Result)
    assert same(good, run_alone(runner, random_image(1), plan))
    assert same(fine, run_alone(runner, random_image(2), plan))


class BlockedRunner:
    """A runner whose `run` blocks until its gate opens, so that requests can queue up."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.card, self.max_batch = runner, runner.card, runner.max_batch
        self.check, self.stack = runner.check, runner.stack
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        self.entered.release()
        assert self.gate.wait(20)
        return self.runner.run(batch, plan)


@asynccontextmanager
async def running(runner: BlockedRunner) -> AsyncIterator[Engine]:
    engine = Engine(runner, Metrics())
    engine.start()
    try:
        yield engine
    finally:
        runner.gate.set()
        await engine.close()


async def soon(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, 20)


async def run_queued(
    runner: BlockedRunner, requests: Sequence[tuple[Any, Plan]]
) -> list[Outcome | BaseException]:
    """The outcomes of requests that all queue up while the first of them occupies the runner."""

    def request(number: int, media: Any, plan: Plan) -> Request:
        return Request(str(number), runner.card.name, media, 1, plan=plan)

    async with running(runner) as engine:
        first = asyncio.create_task(engine.submit(request(0, *requests[0])))
        assert await asyncio.to_thread(runner.entered.acquire, timeout=20)
        rest = [asyncio.create_task(engine.submit(request(n, *r))) for n, r in enumerate(requests[1:], 1)]
        await asyncio.sleep(0)
        assert len(engine.queue) == len(rest)
        runner.gate.set()
        return await soon(asyncio.gather(first, *rest, return_exceptions=True))


@pytest.mark.anyio
@every_runner
async def test_items_of_a_batch_are_independent(case: RunnerCase) -> None:
    reference, runner = case.make(), BlockedRunner(case.make())
    plans = [runner.card.plan(text) for text in case.plans]
    requests = [(case.media(n % 7), plans[n * n % len(plans)]) for n in range(41)]
    outcomes = await run_queued(runner, requests)
    batched = 0
    for (media, plan), outcome in zip(requests, outcomes, strict=True):
        assert isinstance(outcome, Outcome)
        assert outcome.plan == plan
        assert outcome.batch_size <= runner.max_batch
        assert same(outcome.result, run_alone(reference, media, plan))
        batched += outcome.batch_size > 1
    assert batched > 20, "most results come from batches"


def test_different_images_and_plans_have_different_results() -> None:
    """The test above can fail only if this holds."""
    runner = TorchRunner(tiny())
    plans = [runner.card.plan(text) for text in CASES["torch"].plans]
    results = [run_alone(runner, random_image(n), plan) for n in range(7) for plan in plans]
    for i, result in enumerate(results):
        assert all(np.abs(result.scores - other.scores).max() > 1e-4 for other in results[:i])


@pytest.mark.anyio
@every_runner
async def test_bad_item_fails_alone(case: RunnerCase) -> None:
    reference = case.make()
    full = reference.card.full
    for bad in case.bad:
        runner = BlockedRunner(case.make())
        media = [case.media(0), case.media(1), bad, case.media(2), bad]
        outcomes = await run_queued(runner, [(item, full) for item in media])
        for item, outcome in zip(media, outcomes, strict=True):
            if item is bad:
                assert isinstance(outcome, FoveateError)
                assert "\n" not in outcome.detail
            else:
                assert isinstance(outcome, Outcome)
                assert same(outcome.result, run_alone(reference, item, full))


@pytest.mark.anyio
@every_runner
async def test_bad_item_before_others_does_not_affect_them(case: RunnerCase) -> None:
    """Batches that are stacked while the bad item runs are complete, and the engine continues."""
    runner = BlockedRunner(case.make())
    full = runner.card.full
    media = [case.bad[0], *(case.media(n) for n in range(9))]
    first, *rest = await run_queued(runner, [(item, full) for item in media])
    assert isinstance(first, FoveateError)
    assert all(isinstance(outcome, Outcome) for outcome in rest)
