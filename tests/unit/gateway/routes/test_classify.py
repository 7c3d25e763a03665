"""POST /classify: the response, its options, content plans and explanations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from foveate.core.outcome import Explanation, ReductionStage, Result
from foveate.core.plan import Plan
from foveate.gateway.schemas.image import Classification
from foveate.gateway.spool import MEMORY_BYTES
from tests.support.fake_runner import FULL, HALF, FakeRunner
from tests.support.gateway import assert_problem, serving, serving_fakes

pytestmark = pytest.mark.anyio


async def test_response_has_the_documented_fields_and_headers() -> None:
    async with serving_fakes() as gateway:
        response = await gateway.post("/classify", x_request_id="abc", x_slo_ms="5000")
    assert response.status_code == 200
    body = Classification.model_validate_json(response.content)
    assert body.id == response.headers["x-request-id"] == "abc"
    assert [(p.label, p.index) for p in body.predictions] == [("yes", 0), ("no", 1)]
    assert body.compute.plan == response.headers["x-foveate-plan"] == str(FULL)
    assert (body.compute.tokens, body.compute.tokens_full, body.compute.gflops) == (5, 10, 0.5)
    assert body.compute.quality == float(response.headers["x-foveate-quality"]) == 1.0
    assert body.compute.degraded is False
    assert response.headers["x-slo-met"] == "true"
    assert list(body.timings_ms) == ["decode", "queue", "compute", "total"]
    assert response.headers["server-timing"].startswith("decode;dur=")
    assert set(response.json()) == {"id", "model", "predictions", "compute", "timings_ms"}


async def test_query_chooses_model_and_top_k() -> None:
    async with serving_fakes() as gateway:
        top_1 = await gateway.post("/classify", query={"top_k": "1"})
        top_99 = await gateway.post("/classify", query={"top_k": "99", "model": "other"})
    assert len(top_1.json()["predictions"]) == 1
    assert len(top_99.json()["predictions"]) == 2
    assert top_99.json()["model"] == "other"


async def test_model_of_undecoded_bytes_refuses_a_clip_on_disk() -> None:
    async with serving_fakes() as gateway:
        clip = b"\0\0\0\x20ftypisom" + bytes(MEMORY_BYTES)
        assert_problem(await gateway.post("/classify", clip, content_type="video/mp4"), 415, "takes no clips")
    assert gateway.runner.batches == []


class ContentRunner(FakeRunner):
    """Says under plan HALF that the content of the image chose it."""

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        results = [result for result in super().run(batch, plan) if isinstance(result, Result)]
        return [replace(result, chosen=HALF if plan == HALF else None) for result in results]


async def test_rung_chosen_by_content_is_named_as_in_the_ladder() -> None:
    async with serving(ContentRunner()) as gateway:
        chosen, plain = [await gateway.post("/classify", x_plan=text) for text in ("evit:0.5", "full")]
    assert chosen.json()["compute"]["chosen"] == "evit:0.5"
    assert plain.json()["compute"]["chosen"] is None
    for response in (chosen, plain):
        compute = Classification.model_validate_json(response.content).compute
        assert response.json()["compute"] == compute.model_dump()


class ExplainRunner(FakeRunner):
    """Reports four patches: the last one dropped, two merged."""

    def explain(self, media: Sequence[Any], plan: Plan) -> list[Explanation]:
        return [Explanation((2, 2), (ReductionStage(4, 4, (0, 1, 0, -1)),), 12)] * len(media)


async def test_explanation_is_in_the_response_only_when_requested() -> None:
    async with serving(ExplainRunner()) as gateway:
        explained = (await gateway.post("/classify", query={"explain": "true"})).json()
        plain = [
            (await gateway.post("/classify", query=params)).json() for params in ({}, {"explain": "false"})
        ]
    stage = {"block": 4, "tokens": 4, "patches": [0, 1, 0, -1]}
    assert explained["explain"] == {"grid": [2, 2], "exit_layer": 12, "stages": [stage]}
    assert Classification.model_validate(explained).explain is not None
    assert all(explained.keys() - answer.keys() == {"explain"} for answer in plain)


async def test_explanation_is_null_if_the_model_has_none() -> None:
    async with serving_fakes() as gateway:
        answer = (await gateway.post("/classify", query={"explain": "true"})).json()
    assert answer["explain"] is None
    assert answer["predictions"]
    assert Classification.model_validate(answer).explain is None


class WrongScores(FakeRunner):
    """Answers with scores that a test sets."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = np.array(scores, np.float32)

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        super().run(batch, plan)
        return [Result(self.scores, 5, 12, 0.5) for _ in batch]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ((float("nan"), 0.9), "scores holds NaN"),
        ((float("nan"),) * 2, "scores holds NaN"),
        ((float("inf"), 0.1), "scores holds NaN or infinity"),
        ((1.0,), "1 values and not 2"),
    ],
)
async def test_invalid_scores_are_no_answer(scores: tuple[float, ...], words: str) -> None:
    async with serving(WrongScores(*scores)) as gateway:
        response = await gateway.post("/classify", x_slo_ms="5000")
        assert_problem(response, 500, words)
        assert "x-foveate-quality" not in response.headers
        assert gateway.counted("failed") == 1 and gateway.counted("ok") == 0
        assert gateway.metric("foveate_invalid_results_total", model="fake", rung="full") == 1
