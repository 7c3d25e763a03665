"""Measures caches, Ray Serve and autoscalers, and writes docs/benchmarks/scale.{json,md,png}.

`python -m loadtests.scale --only day` prints one section and writes no page.
"""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loadtests.report import FOLDER, ROOT, Figures, Goal, goal_table, table, write
from loadtests.scale import day, on_ray

log = logging.getLogger(__name__)

CACHE_GOALS = (
    Goal("cached answer in memory, ms", "response_hit_p50_ms", "at most", 2, "{:.2f}"),
    Goal("smallest gain of a second task, times as fast", "feature_hit_speedup", "at least", 3, "{:.1f}"),
)
RAY_GOALS = (
    Goal("no-op requests/s on Ray", "ray_noop_rps", "at least", 1500, "{:.0f}", "{:,}"),
    Goal("p50 added to one request at a time, ms", "ray_added_p50_ms", "below", 6, "{:.2f}"),
)


def day_section(options: argparse.Namespace, figures: Figures) -> str:
    """Autoscalers on a simulated day."""
    day_options = day.DayOptions(options.seconds, options.peak, options.slower, options.seed)
    results = day.simulate_days(day_options)
    figures |= day.figures(results)
    day.draw(results, FOLDER / "scale-day.png")
    return day.page(results, day_options)


def caches_section(_: argparse.Namespace, figures: Figures) -> str:
    """Cached answers and features, and an outage of Redis."""
    log.info("measuring caches")
    command = [sys.executable, "-m", "loadtests.scale.caches"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603
    measured: dict[str, Any] = json.loads(output.stdout)
    figures |= {name: value for name, value in measured.items() if isinstance(value, int | float)}
    return caches_page(measured)


def caches_page(measured: Mapping[str, Any]) -> str:
    """The section of the page, in Markdown."""
    answers = [
        ["computed", f"{measured['response_computed_p50_ms']:.2f}"],
        ["cached, in memory", f"{measured['response_hit_p50_ms']:.2f}"],
        ["cached, in Redis", f"{measured['response_hit_p50_ms_redis']:.2f}"],
    ]
    tasks = [
        [task, f"{first:.2f}", f"{second:.2f}", f"{first / second:.1f}", f"{with_redis:.2f}"]
        for task, first, second, with_redis in measured["features"]
    ]
    phases = [
        [name, str(hits), f"{p99:.0f}"]
        for name, hits, p99 in zip(
            ("running", "killed", "restarted"), measured["redis_hits"], measured["redis_p99_ms"], strict=True
        )
    ]
    outage = [
        ["requests", str(measured["redis_down_requests"])],
        ["requests without an answer", str(measured["redis_down_errors"])],
    ]
    return f"""## Cached answers and features

{goal_table(CACHE_GOALS, measured)}

A 640 x 480 JPEG is sent to `vit-t`, one request at a time. The table has medians of the time in the server.

{table(["answer", "ms"], answers)}

A second task uses the features of an image that another task has computed: the shared trunk does not run
again. A 480 x 480 JPEG is sent to `vit-t` and `vit-t-seg`, which share a trunk. The table has medians of the
time in the server; `feature_hit_speedup` is the smallest of the three gains.

{table(["task", "first, ms", "second, ms", "times as fast", "second with Redis, ms"], tasks)}

Redis is killed and restarted while 20 requests per second arrive for 20 images.

{table(["figure", "value"], outage)}

{table(["Redis", "hits", "p99 at the client, ms"], phases)}"""


def ray_section(_: argparse.Namespace, figures: Figures) -> str:
    """Overhead and scaling of Ray Serve."""
    log.info("measuring Ray Serve")
    overhead, rates = on_ray.measure_overhead(), on_ray.measure_scaling()
    figures |= ray_figures(overhead, rates)
    return ray_page(overhead, rates)


def ray_figures(overhead: on_ray.RayOverhead, rates: Mapping[int, float]) -> Figures:
    """The keys of scale.json. rates: requests/s by the number of replicas, one of them 1."""
    return {
        "ray_noop_rps": round(overhead.ray_rps, 1),
        "ray_noop_ratio_local": round(overhead.ray_rps / overhead.local_rps, 3),
        "ray_added_p50_ms": round(overhead.added_ms, 2),
        **{f"replica_scaling_{count}": round(rates[count] / rates[1], 2) for count in rates if count > 1},
    }


def ray_page(overhead: on_ray.RayOverhead, rates: Mapping[int, float]) -> str:
    """The section of the page, in Markdown."""
    servers = [
        ["one process", f"{overhead.local_rps:.0f}", f"{overhead.local_p50_ms:.2f}"],
        ["Ray Serve", f"{overhead.ray_rps:.0f}", f"{overhead.ray_p50_ms:.2f}"],
    ]
    scaled = [[str(count), f"{rps:.0f}", f"{rps / rates[1]:.2f}"] for count, rps in rates.items()]
    return f"""## Ray Serve

{goal_table(RAY_GOALS, ray_figures(overhead, rates))}

A no-op model, a body of 102 kB, one gateway and one worker. The client shares the cores of the machine with
them. The table has medians of {on_ray.ROUNDS} rounds.

{table(["server", f"requests/s at {on_ray.CONNECTIONS} connections", "p50 ms at 1 connection"], servers)}

A model that sleeps {on_ray.SLEEP_MS} ms for one image at a time, at {on_ray.CONNECTIONS} connections:

{table(["replicas", "requests/s", "times one replica"], scaled)}"""


def dashboard_section(_: argparse.Namespace, figures: Figures) -> str:
    """The dashboard over a run of its own."""
    log.info("drawing the dashboard")
    subprocess.run([sys.executable, "-m", "loadtests.scale.dashboard"], cwd=ROOT, check=True)
    return """## The dashboard

The panels of `monitoring/grafana/foveate.json` over a run of three phases. The middle phase has twelve times
the rate of the others, with a deadline of 300 ms. A real Prometheus answered the queries, and matplotlib drew
the panels; Grafana draws them differently.

![The panels of the dashboard](dashboard.png)"""


Section = Callable[[argparse.Namespace, Figures], str]
SECTIONS: Mapping[str, Section] = {
    "caches": caches_section, "ray": ray_section, "day": day_section, "dashboard": dashboard_section,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all benches, or one of them."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=SECTIONS, help="print one section, and write no page")
    parser.add_argument("--seconds", type=float, default=1800, help="length of the simulated day")
    parser.add_argument(
        "--peak", type=float, default=4, help="demand of the busiest hours, in replicas at full quality"
    )
    parser.add_argument(
        "--slower", type=float, default=8, help="times a forward takes longer than in the profile"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level="INFO", format="%(message)s")
    logging.getLogger("matplotlib").setLevel("WARNING")
    figures: Figures = {}
    if options.only:
        print(SECTIONS[options.only](options, figures))
        return
    sections = [section(options, figures) for section in SECTIONS.values()]
    print(write("scale", figures, "# Caches, Ray and autoscaling\n\n" + "\n\n".join(sections)).read_text())


if __name__ == "__main__":
    main()
