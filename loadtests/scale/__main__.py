"""Caches, Ray Serve, and autoscalers over a day of requests: writes docs/benchmarks/scale.{json,md,png}.

`python -m loadtests.scale --only day` plays the day alone.
"""

import argparse
import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.autoscaler.policy import ScalingConfig
from foveate.core.profile import Profile
from foveate.scheduling.slo_policy import SloPolicy
from loadtests.arrivals import schedule
from loadtests.report import FOLDER, ROOT, table, write
from loadtests.scale import on_ray
from loadtests.scale.fleet import Day, Scaler, by_ratio, day, full_quality
from loadtests.simulate.machine import Disturbance, ladder
from loadtests.simulate.run import World
from loadtests.simulate.workload import RequestClass, Workload

log = logging.getLogger(__name__)

PROFILE = ROOT / "models/foveate/models/zoo/vit-t.profile.json"
RULES = ScalingConfig(
    min_replicas=1, max_replicas=16, utilisation=0.75, replica_startup_s=30.0, downscale_delay_s=150.0
)
"""Of all autoscalers: replicas take half a minute to start, and go after two and a half minutes of less."""
EVERY_S, SLO_S = 5.0, 0.3
OURS = "full-quality demand 0.75"
QUEUES, BUSY = (2, 4, 8, 16, 32), (0.5, 0.7, 0.85, 0.95)
"""What the others aim at: requests that wait or run a replica, and the share of its time that it is busy."""
AS_GOOD = 0.0005
"""An autoscaler is as good as ours if its attainment and its quality are at most this much lower."""


def scalers() -> Mapping[str, Scaler]:
    """Each new, for they remember."""
    found: dict[str, Scaler] = {OURS: full_quality(RULES)}
    found |= {
        f"queue length {target}": by_ratio(lambda seen: seen.waiting, target, RULES) for target in QUEUES
    }
    return found | {f"CPU {share}": by_ratio(lambda seen: seen.busy, share, RULES) for share in BUSY}


def days(seconds: float, peak: float, slower: float, seed: int) -> dict[str, Day]:
    """peak: of the day without bursts, in replicas that serve at full without a pause."""
    rungs = ladder(Profile.read(PROFILE.read_text(), "vit-t"))
    world = World(rungs, disturbance=Disturbance(slowdown=slower))
    at = schedule(f"day:{peak:g}", world.full_rate, seconds, seed)
    workload = Workload.draw(at, [RequestClass(SLO_S)], seed)
    found = {}
    for name, scaler in scalers().items():
        log.info("a day under %s", name)
        found[name] = day(world, SloPolicy, workload, scaler, RULES, EVERY_S, seed)
    return found


def cheapest(found: Mapping[str, Day], kind: str) -> tuple[str, Day]:
    """Of one kind, the setting that costs least among those as good as ours; else the best there is."""
    ours, those = found[OURS].record, {name: one for name, one in found.items() if name.startswith(kind)}
    good = {
        name: one
        for name, one in those.items()
        if one.record.attainment >= ours.attainment - AS_GOOD
        and one.record.mean_quality >= ours.mean_quality - AS_GOOD
    }
    if good:
        return min(good.items(), key=lambda item: item[1].replica_s)
    return max(those.items(), key=lambda item: item[1].record.utility)


def of_days(options: argparse.Namespace, figures: dict[str, float]) -> str:
    """A day of requests under every autoscaler."""
    found = days(options.seconds, options.peak, options.slower, options.seed)
    ours = found[OURS]
    others = {kind: cheapest(found, kind) for kind in ("queue length", "CPU")}
    figures |= {
        "autoscale_attainment": round(ours.record.attainment, 4),
        "autoscale_quality": round(ours.record.mean_quality, 4),
        "autoscale_replica_hours": round(ours.replica_s / 3600, 3),
        "autoscale_replica_hours_vs_queue": round(ours.replica_s / others["queue length"][1].replica_s, 3),
        "autoscale_replica_hours_vs_cpu": round(ours.replica_s / others["CPU"][1].replica_s, 3),
    }
    draw({OURS: ours, **dict(others.values())}, FOLDER / "scale-day.png")
    rows = [
        [
            name,
            f"{one.record.attainment:.2%}",
            f"{one.record.mean_quality:.4f}",
            f"{one.replica_s / 3600:.2f}",
            str(max(moment.serving for moment in one.moments)),
            str(sum(a.wanted != b.wanted for a, b in itertools.pairwise(one.moments))),
        ]
        for name, one in found.items()
    ]
    told = f"""## A day with bursts

Simulated: {len(ours.record.end):,} requests for `vit-t` within {1e3 * SLO_S:.0f} ms over a day of
{options.seconds:g} s, with a night, two peaks of {options.peak:g} replicas' worth at full, and five bursts of
twice what else would come. Every replica runs the engine's own policy on the profile's latencies,
{options.slower:g} times as slow, and takes {RULES.replica_startup_s:g} s to start; every autoscaler
looks every {EVERY_S:g} s, and takes replicas away only after {RULES.downscale_delay_s:g} s of less. Queue
length and CPU are scaled as Kubernetes does it (replicas times metric over target), over a range of targets:
the right one is not known beforehand.
"""
    head = ["autoscaler", "in time", "quality", "replica-hours", "most at once", "changes"]
    return f"""{told}
{table(head, rows)}

![Replicas over the day](scale-day.png)

Of the targets that keep as many promises as well as full-quality demand does (or else come nearest), the
cheapest are {others["queue length"][0]} and {others["CPU"][0]}."""


def draw(found: Mapping[str, Day], path: Path) -> None:
    """Demand, and the replicas that serve, over the day; a panel an autoscaler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 1, sharex=True, sharey=True)
    for axis, (name, one) in zip(axes, found.items(), strict=True):
        at = [moment.at for moment in one.moments]
        axis.fill_between(
            at, [moment.demand for moment in one.moments], color="#BBBBBB", label="demand at full"
        )
        axis.step(
            at, [moment.serving for moment in one.moments], where="post", color="#0072B2", label="replicas"
        )
        axis.set_title(
            f"{name}: {one.record.attainment:.2%} in time, quality {one.record.mean_quality:.4f}, "
            f"{one.replica_s / 3600:.2f} replica-hours",
            fontsize=9,
        )
        axis.set_ylabel("replicas")
        axis.grid(alpha=0.3)
    axes[0].legend(loc="upper left", fontsize=8)
    axes[-1].set_xlabel("seconds of the day")
    figure.savefig(path, dpi=120)


def of_caches(_: argparse.Namespace, figures: dict[str, float]) -> str:
    """Hits, and a Redis that dies."""
    log.info("caches")
    command = [sys.executable, "-m", "loadtests.scale.caches"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, Any] = json.loads(said.stdout)
    figures |= {name: found[name] for name in found if isinstance(found[name], int | float)}
    times = [
        ["computed", f"{found['response_computed_p50_ms']:.2f}"],
        ["there already, in memory", f"{found['response_hit_p50_ms']:.2f}"],
        ["there already, in Redis", f"{found['response_hit_p50_ms_redis']:.2f}"],
    ]
    tasks = [
        [task, f"{first:.2f}", f"{second:.2f}", f"{first / second:.1f}", f"{shared:.2f}"]
        for task, first, second, shared in found["features"]
    ]
    phases = [
        [name, str(count), f"{p99:.0f}"]
        for name, count, p99 in zip(
            ("there", "killed", "there again"), found["redis_hits"], found["redis_p99_ms"], strict=True
        )
    ]
    return f"""## Answers that are there already

A 640 x 480 JPEG to `vit-t`, one request at a time; medians of the server's own time (goal of a hit: 2 ms).

{table(["answer", "ms"], times)}

A second task on a picture that another one has been asked of: its trunk has run, and does not again. A
480 x 480 JPEG to `vit-t` and `vit-t-seg`, which share theirs; medians of the server's own time (goal: 3 times
as fast; the figure `feature_hit_speedup` is the least of the three).

{table(["task", "first, ms", "second, ms", "times as fast", "second, features in Redis, ms"], tasks)}

Twenty requests a second for 20 pictures, while Redis is there, is killed, and is started again:
{found["redis_down_errors"]} of {found["redis_down_requests"]} were not answered.

{table(["Redis", "hits", "p99 at the client, ms"], phases)}"""


def of_ray(_: argparse.Namespace, figures: dict[str, float]) -> str:
    """Overhead and scaling of Ray Serve."""
    log.info("Ray Serve")
    light, many = on_ray.noop(), on_ray.scaling()
    figures |= {
        "ray_noop_rps": round(light.ray_rps, 1),
        "ray_noop_ratio_local": round(light.ray_rps / light.local_rps, 3),
        "ray_added_p50_ms": round(light.added_ms, 2),
        **{f"replica_scaling_{count}": round(many[count] / many[1], 2) for count in many if count > 1},
    }
    rows = [
        ["one process", f"{light.local_rps:.0f}", f"{light.local_p50_ms:.2f}"],
        ["Ray Serve", f"{light.ray_rps:.0f}", f"{light.ray_p50_ms:.2f}"],
    ]
    scaled = [[str(count), f"{rps:.0f}", f"{rps / many[1]:.2f}"] for count, rps in many.items()]
    return f"""## Ray Serve

A model that does nothing, a 102 kB body, one gateway and one worker on this machine's two cores, which the
client shares; medians of {on_ray.ROUNDS} rounds (goals on Ray: 1,500 a second, less than 6 ms added).

{table(["where", f"requests/s at {on_ray.CONNECTIONS} connections", "alone, p50 ms"], rows)}

A model that only waits, {on_ray.WAITS_MS} ms for one picture at a time, at {on_ray.CONNECTIONS} connections:

{table(["replicas", "requests/s", "times one"], scaled)}"""


def of_board(_: argparse.Namespace, figures: dict[str, float]) -> str:
    """The dashboard over a run of its own."""
    log.info("the dashboard")
    subprocess.run([sys.executable, "-m", "loadtests.scale.board"], cwd=ROOT, check=True)
    return """## The dashboard

`monitoring/grafana/foveate.json` over a run with a rush in its middle, twelve times as many pictures within
300 ms as before and after it. Its queries were answered by a real Prometheus and drawn by matplotlib;
Grafana's own picture looks different.

![Its panels](dashboard.png)"""


Part = Callable[[argparse.Namespace, dict[str, float]], str]
PARTS: Mapping[str, Part] = {"caches": of_caches, "ray": of_ray, "day": of_days, "board": of_board}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=PARTS, help="print one part, and write nothing")
    parser.add_argument("--seconds", type=float, default=1800, help="that the day lasts")
    parser.add_argument(
        "--peak", type=float, default=4, help="replicas that its busiest hours keep busy at full"
    )
    parser.add_argument(
        "--slower", type=float, default=8, help="than the profile: fewer requests to simulate"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    logging.basicConfig(level="INFO", format="%(message)s")
    logging.getLogger("matplotlib").setLevel("WARNING")
    figures: dict[str, float] = {}
    if options.only:
        print(PARTS[options.only](options, figures))
        return
    parts = [part(options, figures) for part in PARTS.values()]
    print(write("scale", figures, "# Past one process\n\n" + "\n\n".join(parts)).read_text())


if __name__ == "__main__":
    main()
