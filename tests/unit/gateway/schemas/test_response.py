"""Response headers, the cost of an answer, and responses from cache entries."""

import json
from dataclasses import replace

import numpy as np
import pytest

from foveate.core.outcome import Outcome, Result, Timings
from foveate.core.plan import Plan
from foveate.gateway.schemas.response import CacheableResponse, ReplyHeaders, ServedRequest, chosen_field
from tests.support.fake_runner import FULL, HALF, FakeRunner

CARD = FakeRunner().card
UNMEASURED = Plan("fake", 32, depth=3)


def outcome(plan: Plan, tokens: int = 5, exit_layer: int = 12, gflops: float = 0.5) -> Outcome:
    result = Result(np.array([0.75, 0.25], np.float32), tokens, exit_layer, gflops)
    return Outcome(result, plan, Timings(0.0, 0.0), 1)


def served(*outcomes: Outcome, pinned: bool = False, slo_met: bool | None = None) -> ServedRequest:
    return ServedRequest("id-1", CARD, outcomes, pinned, slo_met, {"decode": 0.001, "total": 0.0123456})


def test_headers_and_body_of_a_json_answer() -> None:
    response = served(outcome(HALF), slo_met=True).to_response({"answer": 42})
    assert json.loads(bytes(response.body)) == {
        "id": "id-1", "model": "fake", "answer": 42, "timings_ms": {"decode": 1.0, "total": 12.346},
    }  # fmt: skip
    assert response.media_type == "application/json"
    headers = dict(response.headers)
    assert headers["x-request-id"] == "id-1"
    assert headers["x-foveate-plan"] == str(HALF)
    assert headers["x-foveate-quality"] == "0.9000"
    assert headers["x-slo-met"] == "true"
    assert headers["server-timing"] == "decode;dur=1.0, total;dur=12.346"
    assert "x-cache" not in headers


def test_an_image_is_the_body_itself() -> None:
    response = served(outcome(FULL)).to_response(b"png")
    assert (response.body, response.media_type) == (b"png", "image/png")
    assert "x-slo-met" not in response.headers


def test_an_unmeasured_plan_has_no_quality_header() -> None:
    response = served(outcome(UNMEASURED)).to_response({})
    assert "x-foveate-quality" not in response.headers
    assert response.entry.quality == 0.0
    assert response.entry.measured is None


def test_a_cached_entry_is_repeated_under_another_id() -> None:
    entry = served(outcome(HALF)).to_response({"answer": 42}).entry
    again = CacheableResponse(entry, ReplyHeaders('id "2"', False, {"total": 0.5}), "hit")
    assert json.loads(bytes(again.body)) == {
        "id": 'id "2"', "model": "fake", "answer": 42, "timings_ms": {"total": 500.0},
    }  # fmt: skip
    assert (again.headers["x-slo-met"], again.headers["x-cache"]) == ("false", "hit")
    assert again.headers["x-foveate-quality"] == "0.9000"


@pytest.mark.parametrize(
    ("content", "short_lived"),
    [({"explain": None}, True), ({"explain": {}}, False), ({}, False), (b"", False)],
)
def test_an_answer_without_its_explanation_is_cached_briefly(
    content: dict[str, object] | bytes, short_lived: bool
) -> None:
    assert served(outcome(FULL)).to_response(content).entry.short_lived is short_lived


def test_the_cost_of_several_outcomes_is_added_and_the_lowest_plan_counts() -> None:
    request = served(outcome(FULL, 10, 9, 1.0), outcome(HALF, 5, 12, 0.25))
    assert request.compute() == {
        "plan": str(HALF), "rung": "evit:0.5", "quality": 0.9, "tokens": 15, "tokens_full": 20,
        "exit_layer": 12, "gflops": 1.25, "degraded": True, "chosen": None,
    }  # fmt: skip


def test_an_unmeasured_plan_counts_as_the_lowest() -> None:
    assert served(outcome(HALF), outcome(UNMEASURED)).lowest_quality.plan == UNMEASURED


def test_a_pinned_plan_is_not_degraded() -> None:
    assert served(outcome(HALF), pinned=True).compute()["degraded"] is False
    assert served(outcome(FULL)).compute()["degraded"] is False


def test_the_rung_that_a_content_plan_chose_is_named_as_in_the_ladder() -> None:
    result = outcome(FULL).result
    assert chosen_field(CARD, result) is None
    assert chosen_field(CARD, replace(result, chosen=HALF)) == "evit:0.5"
    assert chosen_field(CARD, replace(result, chosen=FULL)) == "full"
