"""Admission of chats: rungs that a call accepts, what is known before its pictures are decoded, refusals."""

from dataclasses import replace
from typing import Any

import pytest

from foveate.core.chat import ChatCall
from foveate.core.errors import BadRequest, TooLate
from foveate.core.metrics import Metrics
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.core.profile import ChatMeasurement
from foveate.core.request import Objective
from foveate.engine.chat.engine import ChatEngine
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.device import DeviceExecutor
from tests.support import chat_models
from tests.support.chat_engines import QUESTIONS, RecordedChatRunner, asked, chat_call
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.anyio


class LadderEngine:
    """An engine whose loop does not run, with a ladder of three rungs, at 10 s of its clock."""

    def __init__(self) -> None:
        self.runner, self.metrics = RecordedChatRunner(slots=2, slot_tokens=128), Metrics()
        self.runner.card = replace(self.runner.card, ladder=self.ladder())
        device = DeviceExecutor(clock=lambda: 10.0)
        self.engine = ChatEngine(self.runner, self.metrics, device=device, clock=lambda: 10.0)

    def ladder(self) -> tuple[Rung, ...]:
        def rung(text: str, tokens: int, quality: float, worst: float) -> Rung:
            seconds = {1: 0.01 * tokens, 8: 0.08 * tokens}
            chat = ChatMeasurement({"count": worst}, "count", worst, 1, 1, 1, seconds, seconds, seconds)
            return Rung(Plan.parse(text, self.runner.full), tokens, tokens, quality, chat=chat)

        return rung("pool:4", 4, 0.8, 0.7), rung("pool:9", 9, 0.9, 0.6), rung("full", 16, 1.0, 1.0)

    def admit(self, call: ChatCall) -> ChatEntry:
        ids = self.runner.read(call.turns, call.options)
        entry = self.engine._admission.admit(call, ids, False, self.engine._state())
        self.engine.queue.push(entry)
        return entry

    @property
    def demand(self) -> float:
        model = {"model": chat_models.NAME}
        return self.metrics.registry.get_sample_value("foveate_full_quality_seconds_total", model) or 0.0


@pytest.fixture
def ladder() -> LadderEngine:
    return LadderEngine()


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, (0, 1, 2)),
        ({"objective": Objective(min_quality=0.85)}, (1, 2)),
        ({"min_quality_worst": 0.65}, (0, 2)),
        ({"objective": Objective(min_quality=0.85), "min_quality_worst": 0.65}, (2,)),
        ({"objective": Objective(min_quality=1.0)}, (2,)),
    ],
)
async def test_floors_decide_which_rungs_are_allowed(
    ladder: LadderEngine, options: dict[str, Any], allowed: tuple[int, ...]
) -> None:
    assert tuple(ladder.admit(chat_call(QUESTIONS[0], [1], **options)).allowed) == allowed


async def test_rungs_under_which_a_chat_does_not_fit_are_left_out(ladder: LadderEngine) -> None:
    many = chat_call(asked("what?", 8), [1] * 8)
    assert tuple(ladder.admit(many).allowed) == (0, 1)
    with pytest.raises(BadRequest, match="128 of them visual"):
        ladder.admit(replace(many, objective=Objective(min_quality=0.95)))
    with pytest.raises(BadRequest, match="80 of them visual"):
        ladder.admit(chat_call(asked("what? " * 30, 20), [1] * 20))


async def test_a_call_is_judged_before_its_pictures_are_decoded(ladder: LadderEngine) -> None:
    known = chat_call(asked("what? " * 3, 2), [1, 2], objective=Objective(10.5))
    undecoded = replace(known, pictures=[replace(each, pixels=None, digest=b"") for each in known.pictures])
    with pytest.raises(TooLate) as refused:
        ladder.engine.reserve(undecoded.objective, None, 0.0, replace(undecoded, objective=Objective(10.05)))
    assert refused.value.status == 429
    demand = ladder.demand
    ladder.engine.reserve(Objective(), None, 0.0, undecoded)
    assert ladder.demand > demand
    with pytest.raises(BadRequest, match="320 of them visual"):
        ladder.engine.reserve(
            Objective(), None, 0.0,
            chat_call(asked("", 20), [1] * 20, objective=Objective(min_quality=1.0)),
        )  # fmt: skip


async def test_a_call_that_is_late_on_an_idle_device_is_no_demand(ladder: LadderEngine) -> None:
    with pytest.raises(TooLate):
        ladder.engine.reserve(Objective(10.001), None, 0.0)
    assert ladder.demand == 0
    ladder.engine.count_refused(1.0)
    assert ladder.demand > 0


async def test_no_waiting_call_is_refused_before_the_new_one_is_decoded(ladder: LadderEngine) -> None:
    flood = chat_call(QUESTIONS[0], [1], objective=Objective(18.0, tenant="a"))
    waiting = []
    with pytest.raises(TooLate):
        while True:
            waiting.append(ladder.admit(flood))
    other = replace(flood, objective=Objective(18.0, tenant="b"))
    ladder.engine.reserve(other.objective, None, 0.0, other)
    assert not any(entry.over for entry in waiting)
    ladder.admit(other)
    assert [entry.over for entry in waiting] == [False] * (len(waiting) - 1) + [True]


async def test_full_quality_demand_is_the_cost_of_the_call_at_full(ladder: LadderEngine) -> None:
    def demand_of(call: ChatCall) -> float:
        before = ladder.demand
        ladder.engine.reserve(call.objective, call.plan, 0.0, call)
        return ladder.demand - before

    one, two = (chat_call(QUESTIONS[0], range(pictures)) for pictures in (1, 2))
    long = replace(one, options=replace(one.options, max_tokens=80))
    # 0.16 s for the picture, 0.24 s for 48 tokens of the prompt, and 0.16 s for each of 8 tokens.
    assert demand_of(one) == pytest.approx(0.4 + 8 * 0.16)
    assert demand_of(two) > demand_of(one) + 0.16
    assert demand_of(long) == pytest.approx(demand_of(one) + 72 * 0.16)
    assert demand_of(replace(one, plan=ladder.runner.card.ladder[0].plan)) == demand_of(one)


async def test_gateways_learn_when_a_further_call_could_start(ladder: LadderEngine) -> None:
    """Answers that run do not delay it while there is a free slot."""
    waits = []
    for number in range(4):
        waits.append(ladder.engine.queue_wait_s)
        ladder.admit(chat_call(QUESTIONS[0], [number]))
    assert waits[0] == waits[1] == 0
    assert waits[3] == pytest.approx(1.5 * waits[2])
