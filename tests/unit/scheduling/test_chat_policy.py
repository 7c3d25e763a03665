"""The policy of chats, with a virtual clock: degrade before refusing, floors, first tokens, lengths."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.answer_lengths import MIN_ANSWERS, AnswerLengths
from foveate.estimation.arrivals import ArrivalMeter, ArrivalStats
from foveate.scheduling.chat_costs import ChatCosts
from foveate.scheduling.chat_policy import ChatFifo, ChatSloPolicy
from foveate.scheduling.chat_state import ActiveChat, CallLoad, ChatDecision, ChatState

FULL, HALF, LIGHT = (Plan("m", 64, reducer=name) for name in ("none", "pool:9", "pool:4"))
RUNGS = (Rung(LIGHT, 1, 4, 0.8), Rung(HALF, 2, 9, 0.9), Rung(FULL, 4, 16, 1.0))
SLOTS = 4


class VirtualLatency:
    """Starts take 10 ms a picture and 1 ms a token; a step takes 4 ms and 1 ms an answer."""

    safety_factor = 1.0

    def start_s(self, plan: Plan, pictures: int, tokens: int) -> float:
        return 0.01 * pictures + 0.001 * tokens

    def step_s(self, plan: Plan, answers: int) -> float:
        return 0.004 + 0.001 * answers


@dataclass
class WaitingCall:
    """A call about one picture with 4 tokens of text. Rung 0 starts in 18 ms, rung 1 in 23, rung 2 in 30."""

    deadline: float = math.inf
    max_tokens: int = 10
    first_token_by: float = math.inf
    allowed: Sequence[int] = (0, 1, 2)
    pinned: Plan | None = None
    tenant: str = ""
    may_shorten: bool = False
    ready_at: float = -math.inf
    order: float | None = None
    pictures: int = field(default=1)

    @property
    def virtual_deadline(self) -> float:
        return self.order if self.order is not None else min(self.deadline, 100.0)

    @property
    def min_rung(self) -> int:
        return self.allowed[0]

    def load(self, plan: Plan) -> CallLoad:
        tokens = {FULL: 16, HALF: 9, LIGHT: 4}[plan]
        return CallLoad(self.pictures, 4 + tokens)


def policy(lengths: AnswerLengths | None = None) -> ChatSloPolicy:
    """A policy that knows that answers have 10 tokens, if no lengths are given."""
    return ChatSloPolicy(ChatCosts(RUNGS, VirtualLatency(), lengths or known(10), SLOTS))


def known(*tokens: int) -> AnswerLengths:
    lengths = AnswerLengths()
    for number in range(MIN_ANSWERS * 4):
        lengths.record(tokens[number % len(tokens)])
    return lengths


def state(
    waiting: Sequence[WaitingCall],
    active: Sequence[ActiveChat] = (),
    free: int = SLOTS,
    arrivals: ArrivalStats | None = None,
) -> ChatState[WaitingCall]:
    return ChatState(0.0, 0.0, active, waiting, free, arrivals or ArrivalStats())


def chosen(decision: ChatDecision[WaitingCall] | None) -> ChatDecision[WaitingCall]:
    assert decision is not None
    return decision


@pytest.mark.parametrize(
    ("deadline", "plan", "reason"),
    [(1.0, FULL, "full"), (0.076, FULL, "full"), (0.074, HALF, "deadline"), (0.064, LIGHT, "deadline")],
)
def test_a_call_gets_the_best_plan_that_is_in_time(deadline: float, plan: Plan, reason: str) -> None:
    # The first token comes after 30, 23 or 18 ms, and nine more take 45 ms.
    decision = chosen(policy().choose(state([WaitingCall(deadline)])))
    assert (decision.plan, decision.reason, decision.refused) == (plan, reason, ())
    assert len(decision.entries) == 1


def test_it_degrades_before_it_refuses() -> None:
    plans = []
    for count in range(1, 30):
        waiting = [WaitingCall(0.25) for _ in range(count)]
        decision = chosen(policy().choose(state(waiting)))
        if decision.refused:
            break
        plans.append(decision.plan)
    assert plans[0] == FULL and plans[-1] == LIGHT and HALF in plans
    assert plans == sorted(plans, key=[FULL, HALF, LIGHT].index)
    # Where the policy refuses one, admission has refused it before.
    assert policy().admit(waiting[-1], state(waiting[:-1])) is not None


def test_what_is_admitted_is_in_time() -> None:
    admitted: list[WaitingCall] = []
    for _ in range(40):
        candidate = WaitingCall(0.25)
        if policy().admit(candidate, state(admitted)) is None:
            admitted.append(candidate)
    assert 4 < len(admitted) < 40
    assert not chosen(policy().choose(state(admitted))).refused


def test_floors_are_kept() -> None:
    lowest = WaitingCall(0.064, allowed=(1, 2))
    refusal = policy().admit(lowest, state([]))
    assert refusal is not None and refusal.entry is lowest and refusal.alone
    assert policy().admit(WaitingCall(0.064), state([])) is None
    crowd = [WaitingCall(0.2, order=1.0) for _ in range(5)]
    decision = chosen(policy().choose(state([WaitingCall(0.2, allowed=(2,), order=0.0), *crowd])))
    assert decision.plan == FULL and len(decision.entries) == 1
    pinned = WaitingCall(0.001, pinned=HALF, may_shorten=False)
    assert policy().admit(pinned, state([])) is not None


def test_the_deadline_of_the_first_token_counts() -> None:
    decision = chosen(policy().choose(state([WaitingCall(first_token_by=0.025)])))
    assert (decision.plan, decision.reason) == (HALF, "deadline")
    late = WaitingCall(first_token_by=0.01)
    refusal = policy().admit(late, state([]))
    assert refusal is not None and "first token is due in 0.010 s" in refusal.error(0.0).detail
    # Once admitted, it is answered on the cheapest plan all the same.
    decision = chosen(policy().choose(state([late])))
    assert decision.entries == (late,) and decision.plan == LIGHT


def test_a_running_answer_is_not_made_late() -> None:
    # Ten tokens alone take 50 ms; beside another answer 60 ms, and its prefill takes 18 ms more.
    running = ActiveChat(FULL, 1, 11, 0.055)
    newcomer = WaitingCall()
    assert policy(known(11)).admit(newcomer, state([], [running])) is None
    decision = chosen(policy(known(11)).choose(state([newcomer], [running], free=3)))
    assert decision.entries == () and not decision.refused
    assert policy(known(11)).admit(WaitingCall(0.2), state([], [running])) is not None
    roomy = replace(running, deadline=0.2)
    decision = chosen(policy(known(11)).choose(state([newcomer], [roomy], free=3)))
    assert decision.entries == (newcomer,)
    # One that is late anyway holds no other up.
    hopeless = replace(running, deadline=0.02)
    assert chosen(policy(known(11)).choose(state([newcomer], [hopeless], free=3))).entries


def test_lengths_are_learnt_and_judged_by_a_high_quantile() -> None:
    long = WaitingCall(0.2, max_tokens=500)
    assert policy(known(4)).admit(long, state([])) is None
    # One answer in eight is long: the promise has to hold for it too.
    assert policy(known(4, 4, 4, 4, 4, 4, 4, 60)).admit(long, state([])) is not None
    # Nothing is known: one call may find out, on an idle device.
    unknown = AnswerLengths()
    assert policy(unknown).admit(long, state([])) is None
    assert policy(unknown).admit(long, state([WaitingCall(0.3)])) is not None
    assert chosen(policy(unknown).choose(state([long]))).entries == (long,)


def test_an_answer_is_shortened_only_where_that_is_allowed() -> None:
    lengths = known(40)
    call = WaitingCall(0.1, max_tokens=50, may_shorten=True)
    decision = chosen(policy(lengths).choose(state([call])))
    # It is degraded first; 82 ms remain for steps of 5 ms.
    assert decision.plan == LIGHT and decision.max_tokens == (17,)
    assert policy(lengths).admit(call, state([])) is None
    assert policy(lengths).admit(replace(call, deadline=0.01), state([])) is not None
    assert policy(lengths).admit(replace(call, first_token_by=0.01), state([])) is not None
    call = WaitingCall(0.1, max_tokens=50)
    assert policy(lengths).admit(call, state([])) is not None
    assert chosen(policy(lengths).choose(state([call]))).refused == (call,)
    roomy = WaitingCall(10.0, max_tokens=50, may_shorten=True)
    assert chosen(policy(lengths).choose(state([roomy]))).max_tokens == (50,)


def test_load_that_is_expected_degrades_too() -> None:
    calls = [WaitingCall(1.0) for _ in range(2)]
    calm = chosen(policy().choose(state(calls, arrivals=ArrivalStats(1.0, 1.0))))
    assert (calm.plan, calm.reason) == (FULL, "full")
    flood = chosen(policy().choose(state(calls, arrivals=ArrivalStats(60.0, 0.3))))
    assert flood.reason == "load" and flood.plan != FULL


def test_the_flood_of_one_tenant_is_refused() -> None:
    flood: list[WaitingCall] = []
    for _ in range(40):
        candidate = WaitingCall(0.25, tenant="a")
        if policy().admit(candidate, state(flood)) is None:
            flood.append(candidate)
    refusal = policy().admit(WaitingCall(0.25, tenant="b"), state(flood))
    assert refusal is not None and refusal.entry.tenant == "a" and refusal.wait_s > 0


def test_a_call_of_lower_priority_is_refused_first() -> None:
    """A step of priority moves a call forward by a second."""
    waiting: list[WaitingCall] = []
    while policy().admit(low := WaitingCall(0.25, order=0.25), state(waiting)) is None:
        waiting.append(low)
    refusal = policy().admit(WaitingCall(0.25, order=-0.75), state(waiting))
    assert refusal is not None and refusal.entry is waiting[-1] and refusal.wait_s > 0
    equal = WaitingCall(0.25, order=0.25)
    own = policy().admit(equal, state(waiting))
    assert own is not None and own.entry is equal
    late = WaitingCall(0.001, order=-0.999)
    alone = policy().admit(late, state(waiting))
    assert alone is not None and alone.entry is late and alone.alone


def test_a_call_is_refused_that_makes_the_first_token_of_another_one_late() -> None:
    waiting = WaitingCall(10.0, first_token_by=0.03, order=1.0)
    before = WaitingCall(5.0, order=0.0)
    refusal = policy().admit(before, state([waiting]))
    assert refusal is not None and refusal.entry is before
    assert policy().admit(replace(before, order=2.0), state([waiting])) is None
    # One that may be shortened is late only once its first token is.
    short = WaitingCall(0.08, order=1.0, may_shorten=True)
    assert policy().admit(before, state([short])) is None
    assert policy().admit(before, state([replace(short, may_shorten=False)])) is not None


def test_no_more_calls_start_than_there_are_free_slots() -> None:
    waiting = [WaitingCall() for _ in range(9)]
    assert len(chosen(policy().choose(state(waiting, free=3))).entries) == 3
    assert policy().choose(state([])) is None


def test_fifo_serves_all_at_full() -> None:
    fifo = ChatFifo(ChatCosts(RUNGS, VirtualLatency(), known(10), SLOTS))
    late, pinned = WaitingCall(0.0), WaitingCall(pinned=LIGHT)
    assert fifo.admit(late, state([])) is None
    decision = chosen(fifo.choose(state([late, pinned, late])))
    assert decision.plan == FULL and decision.entries == (late, late)
    assert fifo.choose(state([])) is None


class VirtualEngine:
    """Calls that arrive, start and run on a virtual clock, as the engine does it."""

    def __init__(self, lengths: AnswerLengths, deadline_s: float, seed: int) -> None:
        self.policy, self.lengths = policy(lengths), lengths
        self.deadline_s, self.dice = deadline_s, random.Random(seed)
        self.now, self.meter = 0.0, ArrivalMeter()
        self.waiting: list[WaitingCall] = []
        self.running: list[RunningCall] = []
        self.served: list[Plan] = []
        """The plans of the calls that were in time."""
        self.offered = self.refused = self.late = 0

    def state(self) -> ChatState[WaitingCall]:
        active = [ActiveChat(r.plan, r.generated, 99, r.call.deadline) for r in self.running]
        arrivals = self.meter.read(self.now)
        free = SLOTS - len(self.running)
        return ChatState(self.now, self.now, active, self.waiting, free, arrivals)

    def arrive(self) -> None:
        self.offered += 1
        self.meter.record(self.now, self.deadline_s)
        call = WaitingCall(self.now + self.deadline_s, max_tokens=99)
        if self.policy.admit(call, self.state()) is None:
            self.waiting.append(call)
        else:
            self.refused += 1

    def step(self) -> None:
        """Start the calls that the policy chooses, with a token for all in between, or one token for all."""
        decision = self.policy.choose(self.state()) if len(self.running) < SLOTS else None
        for call in decision.refused if decision else ():
            self.waiting.remove(call)
            self.refused += 1
        for call in decision.entries if decision else ():
            self.waiting.remove(call)
            load = call.load(decision.plan) if decision else CallLoad(0, 0)
            self.now += VirtualLatency().start_s(FULL, load.pictures, load.tokens)
            tokens = self.dice.choice((3, 4, 5, 6, 8, 20))
            self.running.append(RunningCall(call, decision.plan if decision else FULL, tokens))
            self.decode()
        if not decision or not decision.entries:
            self.decode()

    def decode(self) -> None:
        if not self.running:
            return
        self.now += VirtualLatency().step_s(FULL, len(self.running))
        for each in list(self.running):
            each.generated += 1
            if each.generated >= each.tokens or self.now > each.call.deadline:
                self.running.remove(each)
                self.lengths.record(each.generated)
                if self.now <= each.call.deadline:
                    self.served.append(each.plan)
                else:
                    self.late += 1


@dataclass
class RunningCall:
    call: WaitingCall
    plan: Plan
    tokens: int
    generated: int = 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("load", "least_served", "refusals"),
    [(0.5, 1.0, 0), (1.1, 0.98, 8), (1.5, 0.87, 48), (3.0, 0.3, 999)],
)
def test_a_poisson_load_is_served_in_time(load: float, least_served: float, refusals: int, seed: int) -> None:
    """load: arrivals over what full can serve: 36 ms a call in full batches. Calls are degraded before one is
    refused, so that few are refused at loads that the cheapest plan can serve."""
    engine = VirtualEngine(known(3, 4, 5, 6, 8, 20), 0.6, seed)
    dice, next_at = random.Random(seed), 0.0
    while engine.offered < 400:
        if next_at <= engine.now or not (engine.running or engine.waiting):
            engine.now = max(engine.now, next_at)
            engine.arrive()
            next_at += dice.expovariate(load / 0.0453)
        else:
            engine.step()
    while engine.running or engine.waiting:
        engine.step()
    assert engine.late <= 0.005 * len(engine.served)
    assert engine.refused <= refusals
    assert len(engine.served) >= least_served * engine.offered - 4
    shares = {plan: engine.served.count(plan) / len(engine.served) for plan in (FULL, LIGHT)}
    assert shares[FULL] > 0.9 if load < 1 else shares[LIGHT] > 0.2
