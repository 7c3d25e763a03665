"""Every result is checked: types, shapes and finite values, before a request is answered with it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard, Task
from foveate.core.outcome import ClassMaps, Result
from foveate.core.plan import Plan
from foveate.core.point_prompts import Features
from foveate.engine.engine import Engine
from foveate.engine.result_check import InvalidResult, ResultCheck, is_finite
from tests.support.engines import make_request, running, soon
from tests.support.fake_runner import FULL, RUNGS, FakeRunner

pytestmark = pytest.mark.anyio
NAN, INF = float("nan"), float("inf")


def card(labels: int = 2, task: Task = "classify", frames: int = 0) -> ModelCard:
    names = tuple(map(str, range(labels)))
    return ModelCard("m", "a model", FULL, names, 0, None, RUNGS, task=task, frames=frames)


def changed(result: Result, **parts: Any) -> Result:
    """The result with parts of any type."""
    return replace(result, **parts)


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def maps(value: float = -1.0, classes: tuple[int, ...] = (0, 2), kind: Any = np.float16) -> ClassMaps:
    filled = np.full((2, 3, 3), -0.5, kind)
    filled[0, 1, 1] = value
    return ClassMaps(classes, filled)


GOOD = Result(scores(0.75, 0.25), 5, 12, 0.5)
SEGMENTED = Result(scores(0.5, 0.25, 0.25), 5, 12, 0.5, maps=maps())
CLIP = changed(GOOD, frames=(0, 4), over_time=np.full((2, 2), 0.5, np.float32))
SEGMENTED_CLIP = changed(SEGMENTED, maps=None, frames=(0, 4), frame_maps=(maps(), maps()))
FEATURES = Features(np.zeros((2, 2, 4), np.float16), np.zeros((8, 8, 3), np.float16))


@pytest.mark.parametrize(
    ("model", "result"),
    [
        (card(), GOOD),
        (card(), changed(GOOD, scores=scores(7, -2).astype(np.float64), gflops=0)),
        (card(104), changed(GOOD, scores=np.full(104, 30, np.float16))),
        (card(), changed(GOOD, scores=np.full(2, np.finfo(np.float32).max))),
        (card(0), changed(GOOD, scores=scores(*range(9)))),
        (card(task="segment"), SEGMENTED),
        (card(task="segment"), changed(SEGMENTED, maps=maps(-INF))),
        (card(task="segment"), changed(SEGMENTED, image_scores=scores(1, 0, 0, 0), features=FEATURES)),
        (card(1, task="clicks"), changed(SEGMENTED, scores=scores(0.5, 0.5), maps=maps(classes=(0, 1)))),
        (card(frames=4), CLIP),
        (card(frames=4), changed(CLIP, over_time=None)),
        (card(task="segment", frames=4), SEGMENTED_CLIP),
        (card(), changed(GOOD, chosen=FULL)),
        (card(), changed(GOOD, scores=scores(300, -300).astype(np.float16))),
        (card(), changed(GOOD, scores=scores(1e30, 0))),
    ],
)
def test_valid_results_of_each_kind_pass(model: ModelCard, result: Result) -> None:
    assert ResultCheck(model)(result, features=True) is result


@pytest.mark.parametrize(
    ("model", "result", "words"),
    [
        (card(3), changed(GOOD, scores=scores(NAN, 0.9, 0.1)), "scores holds NaN"),
        (card(), changed(GOOD, scores=scores(NAN, NAN)), "scores holds NaN"),
        (card(), changed(GOOD, scores=scores(INF, 0)), "scores holds NaN or infinity"),
        (card(5), changed(GOOD, scores=scores(1.0)), "1 values and not 5"),
        (card(), changed(GOOD, scores=scores(1.0, 0, 0)), "3 values and not 2"),
        (card(), changed(GOOD, scores=[0.75, 0.25]), "list and not a floating-point array"),
        (card(), changed(GOOD, scores=np.array([1, 0])), "int64"),
        (card(), changed(GOOD, scores=np.array(["a", "b"])), "<U1"),
        (card(), changed(GOOD, scores=None), "NoneType"),
        (card(), changed(GOOD, scores=np.ones((1, 2), np.float32)), r"shape \(1, 2\)"),
        (card(0), changed(GOOD, scores=scores()), r"shape \(0,\)"),
        (card(), changed(GOOD, tokens=-1), "tokens is -1"),
        (card(), changed(GOOD, tokens=5.5), "tokens is 5.5"),
        (card(), changed(GOOD, exit_layer=None), "exit_layer is None"),
        (card(), changed(GOOD, exit_layer=np.int64(3)), "exit_layer"),
        (card(), changed(GOOD, gflops=NAN), "gflops is nan"),
        (card(), changed(GOOD, gflops="1"), "gflops is '1'"),
        (card(), changed(GOOD, chosen="full"), "chosen is a str"),
        (card(), "cat", "it is a str and not a Result"),
        (card(), None, "it is a NoneType"),
        (card(), ValueError, "it is a type"),
        (card(task="segment"), changed(SEGMENTED, maps=None), "maps is missing"),
        (card(task="segment"), changed(SEGMENTED, scores=scores(1, 0)), "2 values and not 3"),
        (card(task="segment"), changed(SEGMENTED, maps=maps(NAN)), "maps.scores holds NaN"),
        (card(task="segment"), changed(SEGMENTED, maps=maps(-NAN)), "maps.scores holds NaN"),
        (card(task="segment"), changed(SEGMENTED, maps=maps(INF)), "maps.scores holds NaN"),
        (card(task="segment"), changed(SEGMENTED, maps=maps(NAN, kind=np.float32)), "maps.scores holds NaN"),
        (card(task="segment"), changed(SEGMENTED, maps=maps(classes=(0,))), "2 maps for 1 classes"),
        (card(task="segment"), changed(SEGMENTED, maps=maps(classes=(0, 9))), "numbers of no class"),
        (card(task="segment"), changed(SEGMENTED, maps=np.zeros((2, 3, 3))), "maps is a ndarray"),
        (card(task="segment"), changed(SEGMENTED, image_scores=scores(NAN, 1)), "image_scores holds NaN"),
        (card(task="segment"), changed(SEGMENTED, features="x"), "features is a str"),
        (
            card(task="segment"),
            changed(SEGMENTED, features=Features(FEATURES.coarse, FEATURES.fine + np.float16(NAN))),
            "features.fine holds NaN",
        ),
        (card(1, task="clicks"), changed(GOOD, maps=None), "maps is missing"),
        (card(), changed(GOOD, scores=np.ma.array(GOOD.scores, mask=(True, False))), "of type MaskedArray"),
        (card(frames=4), changed(CLIP, frames=(0,)), "over_time has the shape"),
        (card(frames=4), changed(CLIP, frames=[0, 4]), "frames is not a tuple"),
        (card(frames=4), changed(CLIP, over_time=np.full((2, 2), NAN)), "over_time holds NaN"),
        (card(task="segment", frames=4), changed(SEGMENTED_CLIP, frame_maps=()), "0 maps for 2 frames"),
        (
            card(task="segment", frames=4),
            changed(SEGMENTED_CLIP, frame_maps=(maps(), maps(NAN))),
            "maps.scores holds NaN",
        ),
    ],
)
def test_invalid_results_are_one_sentence(model: ModelCard, result: Any, words: str) -> None:
    refused = ResultCheck(model)(result, features=True)
    assert isinstance(refused, InvalidResult)
    assert refused.status == 500 and refused.outcome == "failed"
    with pytest.raises(InvalidResult, match=f"^m gave an invalid answer to this request: .*{words}"):
        raise refused


def test_failed_items_keep_their_error_and_features_that_were_not_asked_for_are_not_checked() -> None:
    check, failure = ResultCheck(card(task="segment")), ValueError("x")
    assert check(failure, features=False) is failure
    unread = changed(SEGMENTED, features=Features(FEATURES.coarse, FEATURES.fine + np.float16(NAN)))
    assert check(unread, features=False) is unread


@pytest.mark.parametrize("value", [NAN, -NAN, INF, -INF])
def test_float16_is_tested_as_exactly_as_float32(value: float) -> None:
    everything = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = everything[np.isfinite(everything)]
    assert is_finite(finite)
    assert not is_finite(np.append(finite, np.float16(value)))


class Returns(FakeRunner):
    """Returns what a test says in place of results."""

    def __init__(self, make: Callable[[list[Any]], Any]) -> None:
        super().__init__()
        self.make = make

    def run(self, batch: list[Any], plan: Plan) -> Any:
        super().run(batch, plan)
        return self.make(batch)


async def test_an_invalid_result_is_counted_and_logged_and_fails_its_request_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def make(batch: list[Any]) -> list[Result]:
        return [changed(GOOD, scores=scores(NAN, 0.9)) if item == "bad" else GOOD for item in batch]

    metrics = Metrics()
    engine = Engine(Returns(make), metrics)
    engine.start()
    good = await soon(engine.submit(make_request("good")))
    assert good.result is GOOD
    with pytest.raises(InvalidResult, match="fake gave an invalid answer"):
        await soon(engine.submit(make_request("bad")))
    counted = metrics.registry.get_sample_value(
        "foveate_invalid_results_total", {"model": "fake", "rung": "full"}
    )
    assert counted == 1
    (record,) = (record for record in caplog.records if "invalid" in record.getMessage())
    assert str(FULL) in record.getMessage() and "fake" in record.getMessage()
    await engine.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        lambda batch: (GOOD for _ in batch),
        lambda _: [],
        lambda _: GOOD,
        lambda batch: np.zeros((len(batch), 2), np.float32),
        lambda _: {"scores": 1},
        lambda batch: [object() for _ in batch],
    ],
    ids=["none", "generator", "empty", "one", "array", "dict", "objects"],
)
async def test_anything_else_than_results_fails_the_request_and_not_the_engine(make: Any) -> None:
    async with running(Returns(make)) as engine:
        for _ in range(2):
            with pytest.raises(Exception, match=r"invalid answer|failed on this request|0 results") as failed:
                await soon(engine.submit(make_request("x")))
            assert getattr(failed.value, "status", None) == 500
        assert engine.serving


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_large_finite_numbers_are_finite(kind: Any) -> None:
    large = np.full(9, np.finfo(kind).max)
    assert is_finite(large) and not is_finite(np.append(large, kind(NAN)))
    assert not is_finite(np.append(large, kind(-INF)))
