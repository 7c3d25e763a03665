"""Policies compared on one simulated load: `python -m loadtests.simulate --shape step:4 --load 2`."""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.core.errors import SetupError
from foveate.core.model import Rung
from foveate.core.profile import Profile
from loadtests.arrivals import SHAPES, schedule
from loadtests.simulate.baselines import policies
from loadtests.simulate.machine import Disturbance, ladder
from loadtests.simulate.oracle import upper_bound
from loadtests.simulate.record import End, Record
from loadtests.simulate.run import World, simulate
from loadtests.simulate.workload import Kind, Workload

ZOO = Path(__file__).parents[2] / "models/foveate/models/zoo"
HEAD = (
    "policy",
    "attainment",
    "quality",
    "utility",
    "of oracle",
    "refused",
    "missed",
    "batch",
    "us/decision",
)


def main() -> None:
    try:
        print(run(_arguments(sys.argv[1:])))
    except SetupError as error:
        sys.exit(error.detail)


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.simulate", description=__doc__)
    parser.add_argument("--model", default="vit-t", help="a model of the zoo, or the path of a profile")
    parser.add_argument("--shape", default="poisson", help=SHAPES)
    parser.add_argument("--load", type=float, default=2.0, help="the rate over what full alone can serve")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--slo-ms", type=float, nargs="+", default=[200.0], help="several: an even mix")
    parser.add_argument("--min-quality", type=float, nargs="+", default=[0.0], help="several: an even mix")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--queue-items", type=int, default=256)
    parser.add_argument("--slower", type=float, default=1.0, help="than the profile, that many times")
    parser.add_argument("--noise", type=float, default=0.05, help="of a batch's seconds, relative")
    parser.add_argument("--policy", nargs="+", choices=policies(1.0), default=list(policies(1.0)))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(given)


def run(args: argparse.Namespace) -> str:
    """The table, or with --json all figures. Raises SetupError."""
    disturbance = Disturbance(args.slower, args.noise)
    world = World(read_rungs(args.model), args.max_batch, args.queue_items, args.replicas, disturbance)
    at = schedule(args.shape, args.load * world.full_rate, args.seconds, args.seed)
    asked = itertools.product(args.slo_ms, args.min_quality)
    workload = Workload.draw(at, [Kind(ms / 1e3, quality) for ms, quality in asked], args.seed)
    if not len(workload):
        raise SetupError("no request comes in this time; ask for more seconds, or for more load")
    best = upper_bound(world, workload)
    makers = policies(min(args.slo_ms) / 1e3)
    records = {name: simulate(world, makers[name], workload, args.seed) for name in args.policy}
    results = {name: figures(record, best) for name, record in records.items()}
    if args.json:
        return json.dumps({"requests": len(workload), "oracle_utility": best, "policies": results}, indent=1)
    return _table(results, len(workload))


def read_rungs(model: str) -> tuple[Rung, ...]:
    """What a policy may choose from, by a model's name or its profile's path. Raises SetupError."""
    path = Path(model) if model.endswith(".json") else ZOO / f"{model}.profile.json"
    try:
        text = path.read_text()
    except OSError as error:
        raise SetupError(f"the profile {str(path)!r} cannot be read: {error.strerror}") from None
    return ladder(Profile.read(text, str(path)))


def figures(record: Record, best: float) -> dict[str, float]:
    """What is shown of a record; `best` is the oracle's utility."""
    return {
        "attainment": record.attainment,
        "quality": record.mean_quality,
        "utility": record.utility,
        "oracle_ratio": record.utility / best,
        "refused": record.share(End.REFUSED),
        "missed": record.share(End.MISSED),
        "poor": record.share(End.POOR),
        "batch": record.mean_batch,
        "decision_us": record.decision_us,
        "requests_per_wall_second": len(record.workload) / record.wall_s,
    }


def _table(results: Mapping[str, Mapping[str, float]], requests: int) -> str:
    rows: list[tuple[str, ...]] = [HEAD]
    for name, row in results.items():
        shares = [f"{row[key]:.2%}" for key in ("oracle_ratio", "refused", "missed")]
        rows.append(
            (
                name,
                f"{row['attainment']:.2%}",
                f"{row['quality']:.4f}",
                f"{row['utility']:.1f}",
                *shares,
                f"{row['batch']:.1f}",
                f"{row['decision_us']:.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    slowest = min(row["requests_per_wall_second"] for row in results.values())
    return "\n".join([*lines, f"{requests} requests; the slowest at {slowest:.0f} a second of wall time"])


if __name__ == "__main__":
    main()
