"""An upper bound on the utility of any policy of chats, with all arrivals and lengths of answers known."""

import numpy as np

from foveate.core.model import Rung
from foveate.engine.chat.scheduler import IDLE_PREFILL_TOKENS
from foveate.scheduling.policy import min_rung
from loadtests.simulate.chats.machine import StageTimes
from loadtests.simulate.chats.run import ChatWorld
from loadtests.simulate.chats.workload import ChatWorkload
from loadtests.simulate.oracle import Hull, bound_of, hull

TOKEN_STEP = 16
"""Tokens of prompts are rounded down to multiples of this, so that few hulls differ."""


def chat_upper_bound(world: ChatWorld, workload: ChatWorkload) -> float:
    """A sum of qualities that no schedule exceeds, on average over the noise.

    The relaxation of `loadtests.simulate.oracle.upper_bound`: each chat is charged its share of each step, at
    least that of the best step there is. A picture that an earlier chat had costs nothing: it may be cached.
    Deadlines of first tokens do not count.
    """
    times = world.times
    hulls: dict[tuple[object, ...], int] = {}
    corners: list[Hull] = []
    index = []
    for number, chat in enumerate(workload.chats):
        request_class = workload.classes[int(workload.class_index[number])]
        key = (request_class.min_quality, chat.seen, chat.text_tokens // TOKEN_STEP, chat.tokens)
        if key not in hulls:
            hulls[key] = len(corners)
            accepted = world.rungs[min_rung(world.rungs, request_class.min_quality) :]
            text = chat.text_tokens // TOKEN_STEP * TOKEN_STEP
            cost = [_cost_s(world, times, rung, text, chat.seen, chat.tokens) for rung in accepted]
            corners.append(hull(cost, [rung.quality or 0.0 for rung in accepted]))
        index.append(hulls[key])
    return bound_of(corners, np.array(index, np.intp), workload.at, workload.deadline)


def _cost_s(world: ChatWorld, times: StageTimes, rung: Rung, text: int, seen: bool, tokens: int) -> float:
    """The fewest device seconds of a chat at a rung."""
    plan, limits = rung.plan, world.limits
    encode_s = 0.0 if seen else times.best_s(plan, "encode", limits.max_batch)
    prompt = text if seen else text + rung.tokens
    prefill_s = prompt * times.best_s(plan, "prefill", max(IDLE_PREFILL_TOKENS, rung.tokens + text))
    decode_s = (tokens - 1) * times.best_s(plan, "decode", limits.slots)
    return world.disturbance.slowdown * (encode_s + prefill_s + decode_s)
