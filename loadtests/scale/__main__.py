"""A day of requests, three autoscalers: `python -m loadtests.scale` prints what each kept and cost."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from foveate.autoscaler.policy import Rules
from foveate.core.profile import Profile
from foveate.engine.promise import Promise
from loadtests.arrivals import schedule
from loadtests.report import table
from loadtests.scale.fleet import Day, Scaler, by_ratio, day, full_quality
from loadtests.simulate.machine import Disturbance, ladder
from loadtests.simulate.run import World
from loadtests.simulate.workload import Kind, Workload

ZOO = Path(__file__).parents[2] / "models/foveate/models/zoo"
RULES = Rules(least=1, most=16, utilisation=0.75, start_s=30.0, calm_s=150.0)
"""Of all three: replicas take half a minute to start, and go only after two and a half minutes of less."""
EVERY_S = 5.0
QUEUE, BUSY = 4.0, 0.7
"""Requests that wait or run a replica, and the share of its time that it is busy, that the others aim at."""
SLO_S = 0.3


def scalers() -> Mapping[str, Scaler]:
    """Each new, for they remember."""
    return {
        "full-quality demand": full_quality(RULES),
        "queue length": by_ratio(lambda shown: shown.waiting, QUEUE, RULES),
        "CPU": by_ratio(lambda shown: shown.busy, BUSY, RULES),
    }


def days(seconds: float, peak: float, slower: float, seed: int) -> dict[str, Day]:
    """peak: of the day without bursts, in replicas that serve at full without a pause."""
    rungs = ladder(Profile.read((ZOO / "vit-t.profile.json").read_text(), "vit-t"))
    world = World(rungs, disturbance=Disturbance(slower=slower))
    at = schedule(f"day:{peak:g}", world.full_rate, seconds, seed)
    workload = Workload.draw(at, [Kind(SLO_S)], seed)
    return {
        name: day(world, Promise, workload, scaler, RULES, EVERY_S, seed)
        for name, scaler in scalers().items()
    }


def rows(found: Mapping[str, Day], seconds: float) -> list[list[str]]:
    """A row an autoscaler."""
    return [
        [
            name,
            f"{one.record.attainment:.2%}",
            f"{one.record.mean_quality:.4f}",
            f"{one.replica_s / 3600:.2f}",
            f"{one.replica_s / seconds:.2f}",
            str(max(moment.serving for moment in one.moments)),
            str(sum(a.wanted != b.wanted for a, b in zip(one.moments, one.moments[1:], strict=False))),
        ]
        for name, one in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.scale", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="that the day lasts")
    parser.add_argument(
        "--peak", type=float, default=4, help="replicas that its busiest hours keep busy at full"
    )
    parser.add_argument(
        "--slower", type=float, default=4, help="than the profile: fewer requests to simulate"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the timelines there")
    args = parser.parse_args()
    found = days(args.seconds, args.peak, args.slower, args.seed)
    head = ["autoscaler", "in time", "quality", "replica-hours", "mean", "most", "changes"]
    print(table(head, rows(found, args.seconds)))
    if args.json:
        lines = {
            name: [[m.at, m.demand, m.serving, m.wanted] for m in one.moments] for name, one in found.items()
        }
        args.json.write_text(json.dumps(lines))


if __name__ == "__main__":
    main()
