"""OpenAI's `detail` as a plan, beside pinned plans, floors and deadlines."""

import pytest

from foveate.core.errors import BadPlan
from foveate.core.model import ModelCard, Rung
from foveate.core.plan import Plan
from foveate.core.profile import ChatMeasurement
from foveate.gateway.chat.messages import Detail
from foveate.gateway.routes.chat_plan import choose_chat_plan, low_plan

FULL = Plan("m", 224)


def rung(text: str, tokens: int, quality: float | None, worst: float = 1.0) -> Rung:
    measured = ChatMeasurement({}, "count", worst, 0.0, 0.0, 0.0)
    return Rung(Plan.parse(text, FULL), 1.0, tokens, quality, chat=measured)


def card(*rungs: Rung) -> ModelCard:
    return ModelCard("m", "", FULL, (), 1, None, (*rungs, rung("full", 196, 1.0)), task="chat")


MEASURED = card(rung("pool:4", 4, 0.7, 0.4), rung("guided:16", 16, 0.9, 0.6), rung("pool:16", 16, 0.85, 0.8))


def chosen(
    detail: Detail,
    measured: ModelCard = MEASURED,
    pinned: str | None = None,
    default: Plan | None = None,
    floors: tuple[float, float] = (0.0, 0.0),
    has_deadline: bool = False,
) -> str | None:
    plan = choose_chat_plan(measured, default, pinned, detail, floors, has_deadline)
    return None if plan is None else plan.relative_to(FULL)


def test_low_is_the_best_measured_plan_of_few_tokens() -> None:
    assert chosen("low") == "guided:16"
    assert chosen("low", card(rung("pool:9", 9, 0.5), rung("pool:49", 49, 0.99))) == "pool:9"
    equal = card(rung("pool:9", 9, 0.5), rung("pool:16", 16, 0.5))
    assert low_plan(equal).relative_to(FULL) == "pool:9"


def test_without_measured_plans_low_is_a_pool() -> None:
    assert chosen("low", card()) == "pool:16"


def test_high_is_full_and_auto_is_open() -> None:
    assert (chosen("high"), chosen("auto")) == ("full", None)


def test_a_deadline_comes_before_high() -> None:
    assert (chosen("high", has_deadline=True), chosen("low", has_deadline=True)) == (None, "guided:16")


@pytest.mark.parametrize(
    ("floors", "plan"),
    [((0.9, 0.0), "guided:16"), ((0.91, 0.0), None), ((0.0, 0.6), "guided:16"), ((0.0, 0.7), None)],
)
def test_floors_come_before_low(floors: tuple[float, float], plan: str | None) -> None:
    assert chosen("low", floors=floors) == plan
    assert chosen("high", floors=floors) == "full"


def test_a_pinned_plan_comes_before_the_detail() -> None:
    assert chosen("high", pinned="pool:4") == "pool:4"
    assert chosen("low", pinned="full", floors=(1.0, 1.0)) == "full"
    with pytest.raises(BadPlan, match=r"x-min-quality 0\.8"):
        chosen("low", pinned="pool:4", floors=(0.8, 0.0))
    with pytest.raises(BadPlan, match=r"x-min-quality-worst 0\.5"):
        chosen("low", pinned="pool:4", floors=(0.0, 0.5))


def test_the_default_plan_of_the_server_is_for_auto() -> None:
    default = MEASURED.plan("pool:16")
    assert (chosen("auto", default=default), chosen("low", default=default)) == ("pool:16", "guided:16")
    assert chosen("auto", default=default, floors=(0.9, 0.0)) == "full"
    assert chosen("auto", default=default, floors=(0.0, 0.9)) == "full"
