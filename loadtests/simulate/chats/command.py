"""Simulated chats for the command line of the simulator."""

import argparse
import itertools
import json
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import SetupError
from foveate.core.model import Rung
from loadtests.arrivals import schedule
from loadtests.load.chats import ChatTraffic, asked_images, chat_traffic
from loadtests.simulate.chats.baselines import CHAT_POLICIES
from loadtests.simulate.chats.engine import ChatLimits
from loadtests.simulate.chats.oracle import chat_upper_bound
from loadtests.simulate.chats.record import ChatSimulationRecord
from loadtests.simulate.chats.run import NOT_SIMULATED, SIMULATED, ChatWorld, simulate_chats
from loadtests.simulate.chats.workload import ChatWorkload
from loadtests.simulate.machine import Disturbance
from loadtests.simulate.record import End
from loadtests.simulate.workload import RequestClass

SAMPLE_RATE, SAMPLE_S = 16.0, 32.0
"""Rate and length of the schedule from whose chats the capacity at full is computed."""
COLUMNS: Mapping[str, tuple[str, str]] = {
    "attainment": ("attainment", "{:.2%}"),
    "quality": ("quality", "{:.4f}"),
    "utility": ("utility", "{:.1f}"),
    "oracle_ratio": ("of oracle", "{:.2%}"),
    "refused": ("refused", "{:.2%}"),
    "missed": ("missed", "{:.2%}"),
    "ttft_ms_p50": ("first p50 ms", "{:.0f}"),
    "ttft_ms_p99": ("p99 ms", "{:.0f}"),
    "answers": ("answers/step", "{:.1f}"),
    "cached": ("cached tokens", "{:.0f}"),
    "decision_us": ("us/decision", "{:.1f}"),
}
"""The columns of the table: title and format of a figure."""


def run_chats(args: argparse.Namespace, rungs: tuple[Rung, ...]) -> str:
    """Simulate all policies. Returns a table, or with --json all figures. Raises SetupError."""
    if args.replicas != 1:
        raise SetupError("chats are simulated on one replica; leave --replicas out")
    traffic = chat_traffic(args.chat)
    disturbance = Disturbance(args.slower, args.noise, gap_s=args.gap_ms / 1e3)
    limits = ChatLimits(slots=args.slots, max_items=args.queue_items)
    world = ChatWorld(rungs, limits, disturbance)
    sample = schedule("constant", SAMPLE_RATE, SAMPLE_S, args.seed)
    rate = args.rate or args.load * world.full_rate(_chats(args, traffic, sample))
    workload = _chats(args, traffic, schedule(args.shape, rate, args.seconds, args.seed))
    if not len(workload):
        raise SetupError(
            f"no chat arrives in {args.seconds:g} s at {rate:.3g}/s; raise --seconds, --load or --rate"
        )
    bound = chat_upper_bound(world, workload)
    names = args.policy or CHAT_POLICIES
    unknown = [name for name in names if name not in CHAT_POLICIES]
    if unknown:
        raise SetupError(f"there is no policy of chats {unknown[0]!r}; there are {', '.join(CHAT_POLICIES)}")
    records = {name: simulate_chats(world, CHAT_POLICIES[name], workload, args.seed) for name in names}
    results = {name: figures(record, bound) for name, record in records.items()}
    if args.json:
        saved = {
            "requests": len(workload), "rate": rate, "oracle_utility": bound, "simulated": SIMULATED,
            "not_simulated": NOT_SIMULATED, "policies": results,
        }  # fmt: skip
        return json.dumps(saved, indent=1)
    return _table(results, len(workload), rate)


def _chats(args: argparse.Namespace, traffic: ChatTraffic, at: NDArray[np.float64]) -> ChatWorkload:
    """The chats at these times. Raises SetupError."""
    classes = [
        RequestClass(ms / 1e3, quality) for ms, quality in itertools.product(args.slo_ms, args.min_quality)
    ]
    first_token_s = args.ttft_ms / 1e3 or math.inf
    return ChatWorkload.planned(at, classes, traffic, asked_images(0, args.seed), args.seed, first_token_s)


def figures(record: ChatSimulationRecord, bound: float) -> dict[str, float]:
    """The results of one policy. bound: the oracle's utility."""
    answered = ~(record.latency_s != record.latency_s)
    return {
        "attainment": record.attainment,
        "quality": record.mean_quality,
        "utility": record.utility,
        "oracle_ratio": record.utility / bound,
        "refused": record.share(End.REFUSED),
        "missed": record.share(End.MISSED),
        "poor": record.share(End.LOW_QUALITY),
        "ttft_ms_p50": record.first_token_ms(50),
        "ttft_ms_p99": record.first_token_ms(99),
        "answers": record.mean_batch,
        "cached": float(record.cached_tokens[answered].mean()) if answered.any() else math.nan,
        "decision_us": record.decision_us,
        "requests_per_wall_second": len(record.workload) / record.wall_s,
    }


def _table(results: Mapping[str, Mapping[str, float]], requests: int, rate: float) -> str:
    rows = [["policy", *(title for title, _ in COLUMNS.values())]]
    for name, row in results.items():
        rows.append([name, *(form.format(row[key]) for key, (_, form) in COLUMNS.items())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    slowest = min(row["requests_per_wall_second"] for row in results.values())
    return "\n".join(
        [
            *lines,
            f"{requests} chats at {rate:.2f}/s; the slowest policy simulates {slowest:.0f} per second",
            f"simulated: {SIMULATED}",
            f"not simulated: {NOT_SIMULATED}",
        ]
    )
