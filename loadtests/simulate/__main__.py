"""Compare policies on a simulated load: `python -m loadtests.simulate --shape step:4 --load 2`."""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.core.errors import SetupError
from foveate.core.model import Rung
from foveate.core.profile import Profile
from foveate.core.settings import DEFAULTS
from loadtests.arrivals import SHAPES, schedule
from loadtests.load.chats import chat_traffic
from loadtests.simulate.baselines import policies
from loadtests.simulate.chats.command import run_chats
from loadtests.simulate.machine import Disturbance, ladder
from loadtests.simulate.oracle import upper_bound
from loadtests.simulate.record import End, SimulationRecord
from loadtests.simulate.run import World, simulate
from loadtests.simulate.workload import RequestClass, Workload

ZOO = Path(__file__).parents[2] / "models/foveate/models/zoo"
HEADER = (
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
    """Run the command line."""
    try:
        print(run(parse_arguments(sys.argv[1:])))
    except SetupError as error:
        sys.exit(error.detail)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line. Exits with a message if one is invalid."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.simulate", description=__doc__)
    parser.add_argument(
        "--model",
        default="",
        help="a model of the zoo, or the path of a profile file; default: vit-t, or that of --chat",
    )
    parser.add_argument(
        "--chat",
        default="",
        help="simulate chats: the name of a model, JSON or a JSON file, as of loadtests.load",
    )
    parser.add_argument("--shape", default="poisson", help=SHAPES)
    parser.add_argument(
        "--load", type=float, default=2.0, help="arrival rate, relative to the capacity at full"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated time")
    parser.add_argument("--slo-ms", type=float, nargs="+", default=[200.0], help="deadlines, drawn evenly")
    parser.add_argument(
        "--min-quality", type=float, nargs="+", default=[0.0], help="minimum qualities, drawn evenly"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--queue-items", type=int, default=256)
    parser.add_argument("--slower", type=float, default=1.0, help="factor on the latencies of the profile")
    parser.add_argument(
        "--noise", type=float, default=0.05, help="relative standard deviation of a batch's time"
    )
    parser.add_argument(
        "--ttft-ms", type=float, default=0.0, help="deadline of the first token of chats; 0: none"
    )
    parser.add_argument("--rate", type=float, default=0.0, help="chats per second, in the place of --load")
    parser.add_argument("--slots", type=int, default=DEFAULTS["chat_slots"], help="answers to chats at once")
    parser.add_argument(
        "--gap-ms", type=float, default=0.0, help="idle time of the device between two steps of chats"
    )
    parser.add_argument("--policy", nargs="+", choices=policies(1.0), help="default: all that apply")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> str:
    """Simulate all policies. Returns a table, or with --json all figures. Raises SetupError."""
    if args.chat:
        return run_chats(args, read_rungs(args.model or chat_traffic(args.chat).model))
    disturbance = Disturbance(args.slower, args.noise)
    world = World(
        read_rungs(args.model or "vit-t"), args.max_batch, args.queue_items, args.replicas, disturbance
    )
    at = schedule(args.shape, args.load * world.full_rate, args.seconds, args.seed)
    objectives = itertools.product(args.slo_ms, args.min_quality)
    classes = [RequestClass(ms / 1e3, quality) for ms, quality in objectives]
    workload = Workload.draw(at, classes, args.seed)
    if not len(workload):
        raise SetupError(
            f"no request arrives in {args.seconds:g} s at load {args.load:g}; raise --seconds or --load"
        )
    bound = upper_bound(world, workload)
    factories = policies(min(args.slo_ms) / 1e3)
    records = {
        name: simulate(world, factories[name], workload, args.seed) for name in args.policy or factories
    }
    results = {name: figures(record, bound) for name, record in records.items()}
    if args.json:
        return json.dumps({"requests": len(workload), "oracle_utility": bound, "policies": results}, indent=1)
    return _table(results, len(workload))


def read_rungs(model: str) -> tuple[Rung, ...]:
    """The rungs that a policy may choose. model: a name in the zoo or the path of a profile file.

    Raises SetupError if the profile cannot be read or has no latencies.
    """
    path = Path(model) if model.endswith(".json") else ZOO / f"{model}.profile.json"
    try:
        text = path.read_text()
    except OSError as error:
        raise SetupError(f"the profile {str(path)!r} cannot be read: {error.strerror}") from None
    return ladder(Profile.read(text, str(path)))


def figures(record: SimulationRecord, bound: float) -> dict[str, float]:
    """The results of one policy. bound: the oracle's utility."""
    return {
        "attainment": record.attainment,
        "quality": record.mean_quality,
        "utility": record.utility,
        "oracle_ratio": record.utility / bound,
        "refused": record.share(End.REFUSED),
        "missed": record.share(End.MISSED),
        "poor": record.share(End.LOW_QUALITY),
        "batch": record.mean_batch,
        "decision_us": record.decision_us,
        "requests_per_wall_second": len(record.workload) / record.wall_s,
    }


def _table(results: Mapping[str, Mapping[str, float]], requests: int) -> str:
    rows: list[tuple[str, ...]] = [HEADER]
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
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    slowest = min(row["requests_per_wall_second"] for row in results.values())
    return "\n".join(
        [*lines, f"{requests} requests; the slowest policy simulates {slowest:.0f} of them per second"]
    )


if __name__ == "__main__":
    main()
