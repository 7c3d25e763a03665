"""What every runner promises the engine, and what the engine makes of it under mixed traffic."""

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
from foveate.engine.runner import HasExplanations, Runner
from foveate.models import huggingface
from foveate.models.huggingface.inputs import Prepared
from foveate.models.layers.config import ViTConfig
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.fake_runner import HALF, FakeRunner

T = TypeVar("T")
CONFIG = ViTConfig(image_size=64, width=24, depth=6, heads=2, classes=5)
WHITE = np.full((64, 64, 3), 255, np.uint8)
"""The picture that makes the torch model below answer NaN."""
WHITE_CLIP = np.full((8, *WHITE.shape), 255, np.uint8)


pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def tiny() -> Checkpoint:
    """A random model that no picture leaves indifferent, and that a white one drives to NaN."""
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


def torch_picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def clip(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, WHITE_CLIP.shape, dtype=np.uint8)


def pretrained_runner(name: str) -> Runner:
    """A model of transformers, random as well, that white drives to NaN too."""
    from tests.support import pretrained  # here, for without transformers there is nothing in it

    side = WHITE.shape[0]
    model = pretrained.settled(getattr(pretrained, name)())

    def spoil(_: object, inputs: tuple[Tensor], output: Any) -> Any:
        white = (inputs[0] > 0.999).flatten(1).all(1)
        logits = output["logits"]
        output["logits"] = logits.masked_fill(white.view(-1, *[1] * (logits.ndim - 1)), torch.nan)
        return output

    model.register_forward_hook(spoil)
    pixels = Prepared(side, InputSpec(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    task: Task = "segment" if name == "segformer" else "classify"
    checkpoint = huggingface.Pretrained(name, model, task, pretrained.LABELS, False, pixels)
    return huggingface.runner(checkpoint, max_batch=4)


@dataclass(frozen=True)
class Kind:
    """A runner under test: how to make one, what it eats, and what makes it choke."""

    make: Callable[[], Runner]
    picture: Callable[[int], Any]
    plans: tuple[str, ...]
    bad: tuple[Any, ...]


class Mirror(FakeRunner):
    """The fake one, answering from what it was given."""

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        share = 1.0 if plan == HALF else 0.5
        super().run(batch, plan)
        found = [np.array([share * int(item) / 100, 1], np.float32) for item in batch]
        return [Result(scores, 5, 12, 0.5) for scores in found]


KINDS = {
    "fake": Kind(lambda: FakeRunner(), str, ("full", "evit:0.5"), ("poison",)),
    "mirror": Kind(lambda: Mirror(), str, ("full", "evit:0.5"), ("poison",)),
    "torch": Kind(
        lambda: TorchRunner(tiny(), max_batch=4),
        torch_picture,
        ("full", "evit:0.7", "evit:0.3", "depth:3", "evit:0.5/depth:4"),
        (WHITE, WHITE[:32], WHITE[..., :1], WHITE[:0]),
    ),
}
if find_spec("transformers"):
    KINDS |= {
        "segformer": Kind(
            lambda: pretrained_runner("segformer"),
            torch_picture,
            ("full", "segformer@32"),
            (WHITE, WHITE[:32], WHITE[..., :1], WHITE[:0]),
        ),
        "videomae": Kind(
            lambda: pretrained_runner("videomae"),
            clip,
            ("full", "frames:4", "frames:2", "videomae@32/frames:4"),
            (WHITE_CLIP, WHITE_CLIP[:4], WHITE_CLIP[0], WHITE_CLIP[:, :32]),
        ),
    }
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def alone(runner: Runner, media: Any, plan: Plan) -> Result:
    (result,) = runner.run(runner.stack([media], plan), plan)
    assert isinstance(result, Result)
    return result


def same(found: Result, expected: Result) -> bool:
    costs = (found.tokens, found.exit_layer, found.gflops)
    close = bool(np.abs(found.scores - expected.scores).max() < 1e-5)
    return close and costs == (expected.tokens, expected.exit_layer, expected.gflops)


@every_kind
def test_one_result_an_item_in_order_for_every_size_of_batch(kind: Kind) -> None:
    runner = kind.make()
    for text in kind.plans:
        plan = runner.card.plan(text)
        runner.check(plan)
        for size in range(1, runner.max_batch + 1):
            media = [kind.picture(seed) for seed in range(size)]
            results = runner.run(runner.stack(media, plan), plan)
            assert len(results) == size
            for item, result in zip(media, results, strict=True):
                assert isinstance(result, Result)
                assert same(result, alone(runner, item, plan))


@every_kind
def test_a_result_is_as_the_card_says(kind: Kind) -> None:
    runner = kind.make()
    card = runner.card
    assert card.ladder[-1].plan == card.full
    classes = len(card.labels) + (card.task == "segment")  # and the background
    assert [r.gflops for r in card.ladder] == sorted(r.gflops for r in card.ladder)
    for rung in card.ladder:
        runner.check(rung.plan)
        result = alone(runner, kind.picture(1), rung.plan)
        assert result.scores.shape == (classes,)
        assert result.scores.dtype == np.float32
        assert result.gflops > 0


def test_the_ladder_foretells_tokens_and_cost_of_the_torch_runner() -> None:
    runner = TorchRunner(tiny())
    assert len(runner.card.ladder) > 2
    for rung in runner.card.ladder:
        result = alone(runner, torch_picture(1), rung.plan)
        assert (result.tokens, result.gflops) == (rung.tokens, rung.gflops)
        assert result.exit_layer == CONFIG.depth
        assert abs(float(result.scores.sum()) - 1) < 1e-5


@every_kind
def test_a_plan_that_cannot_be_run_is_refused_beforehand(kind: Kind) -> None:
    runner = kind.make()
    full = runner.card.full
    for wrong in (
        replace(full, variant="someone-else"),
        replace(full, depth=99),
        replace(full, reducer="warp:9"),
        replace(full, reducer="evit:7"),
        replace(full, precision="bf16"),
        replace(full, image_size=33),
        replace(full, image_size=full.image_size * 2),
        replace(full, exit="0.9"),
    ):
        with pytest.raises(BadPlan) as refused:
            runner.check(wrong)
        assert "\n" not in refused.value.detail


@every_kind
def test_stacking_does_not_touch_the_media(kind: Kind) -> None:
    runner = kind.make()
    media = [kind.picture(1), kind.picture(2)]
    runner.run(runner.stack(media, runner.card.full), runner.card.full)
    assert all(np.array_equal(was, kind.picture(n)) for n, was in enumerate(media, start=1))


def test_the_torch_runner_explains_each_item_by_itself_and_as_its_result_says() -> None:
    runner = TorchRunner(tiny())
    media = [torch_picture(seed) for seed in range(3)]
    for text in KINDS["torch"].plans:
        plan = runner.card.plan(text)
        found = runner.explain(media, plan)
        assert len(found) == len(media)
        for item, explanation in zip(media, found, strict=True):
            result = alone(runner, item, plan)
            assert explanation.exit_layer == result.exit_layer
            assert [stage.tokens for stage in explanation.stages[-1:]] in ([], [result.tokens])
            assert bool(explanation.stages) == (result.tokens < 17)
            assert runner.explain([item], plan) == [explanation]
    assert len(set(runner.explain(media, runner.card.plan("evit:0.3")))) == len(media)


def test_the_engine_sees_that_the_torch_runner_explains_and_the_fake_one_does_not() -> None:
    assert isinstance(TorchRunner(tiny()), HasExplanations)
    assert not isinstance(FakeRunner(), HasExplanations)


def test_a_picture_without_finite_scores_fails_in_its_own_place() -> None:
    runner = TorchRunner(tiny())
    plan = runner.card.full
    good, bad, fine = runner.run(runner.stack([torch_picture(1), WHITE, torch_picture(2)], plan), plan)
    assert isinstance(bad, RunFailed)
    assert isinstance(good, Result)
    assert isinstance(fine, Result)
    assert same(good, alone(runner, torch_picture(1), plan))
    assert same(fine, alone(runner, torch_picture(2), plan))


class Held:
    """Any runner, held at its gate until everybody who should be waiting is."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.card, self.max_batch = runner, runner.card, runner.max_batch
        self.check, self.stack = runner.check, runner.stack
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        self.entered.release()
        assert self.gate.wait(20)
        return self.runner.run(batch, plan)


@asynccontextmanager
async def running(runner: Held) -> AsyncIterator[Engine]:
    engine = Engine(runner, Metrics())
    engine.start()
    try:
        yield engine
    finally:
        runner.gate.set()
        await engine.close()


async def soon(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, 20)


async def together(runner: Held, requests: Sequence[tuple[Any, Plan]]) -> list[Outcome | BaseException]:
    """The outcomes of requests that all wait while the first of them holds the runner."""

    def ask(number: int, media: Any, plan: Plan) -> Request:
        return Request(str(number), runner.card.name, media, 1, plan=plan)

    async with running(runner) as engine:
        first = asyncio.create_task(engine.submit(ask(0, *requests[0])))
        assert await asyncio.to_thread(runner.entered.acquire, timeout=20)
        rest = [asyncio.create_task(engine.submit(ask(n, *r))) for n, r in enumerate(requests[1:], 1)]
        await asyncio.sleep(0)
        assert len(engine.queue) == len(rest)
        runner.gate.set()
        return await soon(asyncio.gather(first, *rest, return_exceptions=True))


@pytest.mark.anyio
@every_kind
async def test_an_item_in_a_batch_does_not_change_another_items_answer(kind: Kind) -> None:
    reference, runner = kind.make(), Held(kind.make())
    plans = [runner.card.plan(text) for text in kind.plans]
    requests = [(kind.picture(n % 7), plans[n * n % len(plans)]) for n in range(41)]
    outcomes = await together(runner, requests)
    batched = 0
    for (media, plan), outcome in zip(requests, outcomes, strict=True):
        assert isinstance(outcome, Outcome)
        assert outcome.plan == plan
        assert outcome.batch_size <= runner.max_batch
        assert same(outcome.result, alone(reference, media, plan))
        batched += outcome.batch_size > 1
    assert batched > 20, "the answers were to come out of batches"


def test_different_pictures_and_plans_have_different_answers() -> None:
    """Without this the test above could not fail."""
    runner = TorchRunner(tiny())
    plans = [runner.card.plan(text) for text in KINDS["torch"].plans]
    found = [alone(runner, torch_picture(n), plan) for n in range(7) for plan in plans]
    for i, one in enumerate(found):
        assert all(np.abs(one.scores - other.scores).max() > 1e-4 for other in found[:i])


@pytest.mark.anyio
@every_kind
async def test_a_bad_item_fails_alone(kind: Kind) -> None:
    reference = kind.make()
    full = reference.card.full
    for bad in kind.bad:
        runner = Held(kind.make())
        media = [kind.picture(0), kind.picture(1), bad, kind.picture(2), bad]
        outcomes = await together(runner, [(item, full) for item in media])
        for item, outcome in zip(media, outcomes, strict=True):
            if item is bad:
                assert isinstance(outcome, FoveateError)
                assert "\n" not in outcome.detail
            else:
                assert isinstance(outcome, Outcome)
                assert same(outcome.result, alone(reference, item, full))


@pytest.mark.anyio
@every_kind
async def test_a_bad_item_ahead_of_everybody_harms_nobody(kind: Kind) -> None:
    """Batches staged while the bad one runs are whole, and the engine goes on."""
    runner = Held(kind.make())
    full = runner.card.full
    media = [kind.bad[0], *(kind.picture(n) for n in range(9))]
    first, *rest = await together(runner, [(item, full) for item in media])
    assert isinstance(first, FoveateError)
    assert all(isinstance(outcome, Outcome) for outcome in rest)
