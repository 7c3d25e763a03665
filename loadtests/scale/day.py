"""Compares autoscalers on one simulated day of requests with bursts."""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from foveate.autoscaler.policy import ScalingConfig
from foveate.core.profile import Profile
from foveate.scheduling.slo_policy import SloPolicy
from loadtests.arrivals import schedule
from loadtests.report import ROOT, table
from loadtests.scale.fleet import DayResult, Scaler, full_quality_scaler, ratio_scaler, simulate_day
from loadtests.simulate.machine import Disturbance, ladder
from loadtests.simulate.run import World
from loadtests.simulate.workload import RequestClass, Workload

log = logging.getLogger(__name__)

PROFILE = ROOT / "models/foveate/models/zoo/vit-t.profile.json"
CONFIG = ScalingConfig(
    min_replicas=1, max_replicas=16, utilisation=0.75, replica_startup_s=30.0, downscale_delay_s=150.0
)
"""The bounds and delays of all autoscalers."""
INTERVAL_S, SLO_S = 5.0, 0.3
FULL_QUALITY = "full-quality demand 0.75"
"""The name of Foveate's policy in tables; the number is the target utilisation."""
QUEUE_TARGETS = (2, 4, 8, 16, 32)
"""Targets of the autoscaler by queue length: requests that wait or run, per replica."""
CPU_TARGETS = (0.5, 0.7, 0.85, 0.95)
"""Targets of the autoscaler by CPU: share of the time that a replica is busy."""
TOLERANCE = 0.0005
"""An autoscaler counts as equal to Foveate's if its attainment and quality are lower by at most this much."""


@dataclass(frozen=True, slots=True)
class DayOptions:
    """The simulated day."""

    seconds: float
    """Length of the day."""
    peak: float
    """Demand of the busiest hours without bursts, in replicas that are busy at full quality."""
    slowdown: float
    """Times that a forward takes longer than in the profile: fewer requests to simulate."""
    seed: int


def scalers() -> Mapping[str, Scaler]:
    """New autoscalers by name; each has a state."""
    by_name: dict[str, Scaler] = {FULL_QUALITY: full_quality_scaler(CONFIG)}
    for target in QUEUE_TARGETS:
        by_name[f"queue length {target}"] = ratio_scaler(lambda sample: sample.queue_length, target, CONFIG)
    for share in CPU_TARGETS:
        by_name[f"CPU {share}"] = ratio_scaler(lambda sample: sample.utilisation, share, CONFIG)
    return by_name


def simulate_days(options: DayOptions) -> dict[str, DayResult]:
    """The same day under each autoscaler, by name."""
    rungs = ladder(Profile.read(PROFILE.read_text(), "vit-t"))
    world = World(rungs, disturbance=Disturbance(slowdown=options.slowdown))
    at = schedule(f"day:{options.peak:g}", world.full_rate, options.seconds, options.seed)
    workload = Workload.draw(at, [RequestClass(SLO_S)], options.seed)
    results = {}
    for name, scaler in scalers().items():
        log.info("simulating a day with the autoscaler: %s", name)
        results[name] = simulate_day(world, SloPolicy, workload, scaler, CONFIG, INTERVAL_S, options.seed)
    return results


def cheapest_equal(results: Mapping[str, DayResult], prefix: str) -> str:
    """The cheapest setting, of those whose name has the prefix, that is equal to Foveate's policy.

    If none is equal, the one with the highest utility.
    """
    reference = results[FULL_QUALITY].record
    candidates = {name: result for name, result in results.items() if name.startswith(prefix)}
    equal = {
        name: result
        for name, result in candidates.items()
        if result.record.attainment >= reference.attainment - TOLERANCE
        and result.record.mean_quality >= reference.mean_quality - TOLERANCE
    }
    if equal:
        return min(equal, key=lambda name: equal[name].replica_s)
    return max(candidates, key=lambda name: candidates[name].record.utility)


def figures(results: Mapping[str, DayResult]) -> dict[str, float]:
    """The keys of scale.json."""
    own = results[FULL_QUALITY]
    queue, cpu = (results[cheapest_equal(results, prefix)] for prefix in ("queue length", "CPU"))
    return {
        "autoscale_attainment": round(own.record.attainment, 4),
        "autoscale_quality": round(own.record.mean_quality, 4),
        "autoscale_replica_hours": round(own.replica_s / 3600, 3),
        "autoscale_replica_hours_vs_queue": round(own.replica_s / queue.replica_s, 3),
        "autoscale_replica_hours_vs_cpu": round(own.replica_s / cpu.replica_s, 3),
    }


def page(results: Mapping[str, DayResult], options: DayOptions) -> str:
    """The section of the page, in Markdown."""
    chosen = {prefix: cheapest_equal(results, prefix) for prefix in ("queue length", "CPU")}
    head = ["autoscaler", "in time", "quality", "replica-hours", "max. replicas", "changes", "in the figure"]
    rows = [[*_row(name, result), _mark(name, chosen)] for name, result in results.items()]
    setup = [
        ["requests", f"{len(results[FULL_QUALITY].record.end):,}"],
        ["deadline, ms", f"{1e3 * SLO_S:.0f}"],
        ["length of the day, s", f"{options.seconds:g}"],
        ["demand at the two peaks, replicas at full quality", f"{options.peak:g}"],
        ["forward time, relative to the profile", f"{options.slowdown:g}"],
        ["start-up of a replica, s", f"{CONFIG.replica_startup_s:g}"],
        ["interval of the autoscalers, s", f"{INTERVAL_S:g}"],
        ["downscale delay, s", f"{CONFIG.downscale_delay_s:g}"],
    ]
    return f"""## A day with bursts

A simulation with one model, `vit-t`. The day has a night, two peaks, and five bursts of twice the rate around
them. Every replica runs the engine's own policy on the latencies of the profile. The autoscalers by queue
length and by CPU use the algorithm of Kubernetes (replicas times metric over target) with a range of targets,
because the best target is not known in advance.

{table(["setting", "value"], setup)}

{table(head, rows)}

The figure shows full-quality demand, and of each other autoscaler the cheapest target with the attainment and
the quality of full-quality demand, less a tolerance of {TOLERANCE:g}. If no target has them, it shows the
one with the highest utility.

![Replicas over the day](scale-day.png)"""


def _row(name: str, result: DayResult) -> list[str]:
    record, states = result.record, result.states
    return [
        name,
        f"{record.attainment:.2%}",
        f"{record.mean_quality:.4f}",
        f"{result.replica_s / 3600:.2f}",
        str(max(state.serving for state in states)),
        str(sum(a.desired != b.desired for a, b in itertools.pairwise(states))),
    ]


def _mark(name: str, chosen: Mapping[str, str]) -> str:
    return "yes" if name == FULL_QUALITY or name in chosen.values() else ""


def draw(results: Mapping[str, DayResult], path: Path) -> None:
    """One panel for each autoscaler of the figure: demand and serving replicas over the day."""
    from matplotlib.figure import Figure

    names = [FULL_QUALITY, *(cheapest_equal(results, prefix) for prefix in ("queue length", "CPU"))]
    figure = Figure(figsize=(9, 2.2 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        result = results[name]
        at = [state.at for state in result.states]
        demand, serving = ([getattr(s, field) for s in result.states] for field in ("demand", "serving"))
        axis.fill_between(at, demand, color="#BBBBBB", label="demand at full quality")
        axis.step(at, serving, where="post", color="#0072B2", label="replicas")
        axis.set_title(
            f"{name}: {result.record.attainment:.2%} in time, quality {result.record.mean_quality:.4f}, "
            f"{result.replica_s / 3600:.2f} replica-hours",
            fontsize=9,
        )
        axis.set_ylabel("replicas")
        axis.grid(alpha=0.3)
    axes[0].legend(loc="upper left", fontsize=8)
    axes[-1].set_xlabel("seconds of the day")
    figure.savefig(path, dpi=120)
