"""The context of a request: its id, its deadline, and whether the client pinned the plan."""

import pytest

from foveate.core.request import Objective
from foveate.gateway.routes.context import ClientChoice, RequestContext, RequestLog, request_id_of
from tests.support.fake_runner import FakeRunner


def context(objective: Objective, plan: str | None = None) -> RequestContext[None]:
    """A request that arrived at second 10."""
    choice = ClientChoice(None, plan)
    return RequestContext("id", FakeRunner().card, objective, None, choice, None, 10.0, RequestLog())


@pytest.mark.parametrize("header", ["a", "x" * 128, "with space", '"quoted"'])
def test_request_id_of_the_client_is_used(header: str) -> None:
    assert request_id_of(header) == header


@pytest.mark.parametrize("header", ["", "x" * 129, "tab\there", "naïve", "line\nbreak"])
def test_invalid_request_id_is_replaced_by_a_new_one(header: str) -> None:
    ids = {request_id_of(header) for _ in range(10)}
    assert len(ids) == 10
    assert all(len(name) == 24 and int(name, 16) >= 0 for name in ids)


def test_deadline_is_met_up_to_its_last_instant() -> None:
    limited = context(Objective(deadline=12.5))
    assert [limited.deadline_met(total_s) for total_s in (0.0, 2.5, 2.6)] == [True, True, False]
    assert context(Objective()).deadline_met(1e9) is None


def test_plan_is_pinned_if_the_client_named_it() -> None:
    assert context(Objective(), "full").pinned
    assert not context(Objective()).pinned
