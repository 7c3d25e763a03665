"""The Markdown page of the bench."""

from loadtests.report import Figures, Goal, cell, goal_table, table
from loadtests.slo import late
from loadtests.slo.decisions import WAITING
from loadtests.slo.live import OVERLOAD, PRECISION, STEP, STEP_BASE
from loadtests.slo.simulated import LOADS, SHAPES

GOALS = (
    Goal("static-full: requests in time at the overload", "overload_static_attainment", "below", 0.5,
         "{:.1%}", "{:.0%}"),
    Goal("Foveate: requests in time at the overload", "overload_attainment", "at least", 0.99,
         "{:.2%}", "{:.0%}"),
    Goal("Foveate: loss of top-1 at the overload, points", "overload_accuracy_loss_points", "at most", 2,
         "{:.2f}"),
    Goal("highest rate, relative to static-full", "rate_ratio_static", "at least", 3, "{:.2f}"),
    Goal("highest rate, relative to the best other server", "rate_ratio_best_peer", "at least", 3, "{:.2f}"),
    Goal("time to recover from the start of the step, s", "recovery_s", "at most", 1, "{:.2f}"),
    Goal("time to full quality after the end of the step, s", "quality_back_s", "at most", 2, "{:.2f}"),
    Goal("simulated utility, relative to the oracle, minimum", "oracle_ratio_min", "at least", 0.95,
         "{:.3f}"),
    Goal("difference of simulated and real requests in time, points", "sim_real_gap_points", "at most", 3,
         "{:.2f}"),
    Goal(f"a decision with {WAITING:,} waiting requests, ms", "decision_ms_at_1000", "below", 1, "{:.3f}"),
    Goal("forwards for expired or cancelled requests", "late_forwards", "at most", 0, "{:.0f}"),
)  # fmt: skip


def page(figures: Figures) -> str:
    """The page for the servers that the figures have."""
    tables = {
        "goals": goal_table(GOALS, figures),
        "load": table(["figure", "value"], load_rows(figures)),
        "rates": table(["server", "requests/s", "top-1 of answers in time"], rate_rows(figures)),
        "real": table(["run", "real", "simulated", "forwards, relative to the profile"], real_rows(figures)),
        "spread": table(["figure", "value"], spread_rows(figures)),
        "oracle": table(
            ["arrivals", "utility, relative to the oracle"],
            [[shape, cell(figures, f"oracle_ratio_{shape}", "{:.4f}")] for shape in SHAPES],
        ),
        "decisions": table(["figure", "value"], decision_rows(figures)),
    }
    return TEXT.format_map(tables)


def load_rows(figures: Figures) -> list[list[str]]:
    """The raw loop, the overload and the cost of the generator."""
    return [
        ["raw loop, images/s", cell(figures, "raw_per_s", "{:.1f}")],
        ["raw loop, top-1", cell(figures, "raw_8_accuracy", "{:.1%}")],
        ["highest rate of Foveate, relative to the raw loop", cell(figures, "rate_ratio_raw", "{:.2f}")],
        ["overload, requests/s", cell(figures, "overload_per_s", "{:.1f}")],
        ["generator at the overload, us of processor time per request",
         cell(figures, "generator_us_per_request", "{:.0f}")],
        ["generator at the overload, share of a core", cell(figures, "generator_core_share", "{:.1%}")],
        ["generator at the overload, lag at p99, ms", cell(figures, "generator_lag_ms_p99", "{:.1f}")],
    ]  # fmt: skip


def rate_rows(figures: Figures) -> list[list[str]]:
    """The highest rate of each server, and its accuracy at that rate."""
    prefix = "accuracy_at_rate_"
    measured = [key.removeprefix(prefix) for key in figures if key.startswith(prefix)]
    names = dict.fromkeys(["foveate", "static-full", *measured])
    return [
        [TITLES.get(name, name), cell(figures, f"rate_{name}", "{:.2f}"),
         cell(figures, f"{prefix}{name}", "{:.1%}")]
        for name in names
    ]  # fmt: skip


def real_rows(figures: Figures) -> list[list[str]]:
    """The attainment of real runs and of their simulations."""
    return [
        [title, cell(figures, f"sim_real_{name}_real", "{:.2%}"),
         cell(figures, f"sim_real_{name}_simulated", "{:.2%}"),
         cell(figures, f"sim_real_{name}_slower", "{:.2f}")]
        for name, title in SIMULATED.items()
    ]  # fmt: skip


def spread_rows(figures: Figures) -> list[list[str]]:
    """The difference of two real runs."""
    return [
        ["difference of two real runs beyond the overload, points",
         cell(figures, "sim_real_spread_points", "{:.1f}")],
    ]  # fmt: skip


def decision_rows(figures: Figures) -> list[list[str]]:
    """The time of decisions, and the counts of the run with expiring and cancelled requests."""
    return [
        [f"choose the next batch with {WAITING:,} waiting requests, ms",
         cell(figures, "decision_ms_at_1000", "{:.3f}")],
        [f"admit a request with {WAITING:,} waiting requests, ms",
         cell(figures, "admission_ms_at_1000", "{:.3f}")],
        ["requests offered", cell(figures, "late_offered", "{:.0f}")],
        ["requests in a forward", cell(figures, "late_ran", "{:.0f}")],
        ["requests answered", cell(figures, "late_answered", "{:.0f}")],
        ["requests in a forward that were expired or cancelled at its start",
         cell(figures, "late_forwards", "{:.0f}")],
    ]  # fmt: skip


TITLES = {"foveate": "Foveate"}
"""Servers whose title differs from their name."""
SIMULATED = {
    "static": "static-full at the overload",
    "overload": "Foveate at the overload",
    "beyond": "Foveate at three times the raw rate, with a minimum quality of 1",
}
"""The keys of the compared runs, and their titles."""
TEXT = f"""# Deadlines under load

The model is ViT-S/16, made from vit-t by copying channels and heads. `foveate profile --with vit-xs`
measured its ladder, whose lower rungs are plans of vit-xs, a smaller sibling. Runs have Poisson arrivals,
except for the step. Each round starts every server again, and figures are medians over the rounds.

The raw loop decodes and runs batches of 8 without a server. Static-full is Foveate with
`--policy fifo --plan full` and batches of at most 8, like the other servers. Server and load generator
share the cores, and nothing is subtracted for the generator. `make bench-slo` repeats the bench, and
writes the runs of its last round to `runs/slo.html`.

## Goals

{{goals}}

The overload is {OVERLOAD:g} times the raw rate. The step raises the rate from {STEP_BASE:g} times to
{STEP_BASE * STEP:g} times the raw rate in the middle third of the run. Times of recovery are in windows
of a quarter of a second, by scheduled time. Full quality is the quality of the full plan in the profile;
some cheaper plans have it too.

{{load}}

## Highest rate with 99% in time

The rate is the result of a bisection with a precision of {PRECISION:.0%}. A rate fails if two runs with
different arrivals fail. Each server is started again, warmed up with batches, and tuned to the deadline
as the docstrings in `loadtests/peers/servers` describe.

{{rates}}

## Simulator and real server

The simulator repeats the arrivals of a real run. Before it, it serves another run at the same rate, as
the real server has. From that other run it takes the time of forwards relative to the profile, their
variation, the time between forwards, and the time of network and decoding.

{{real}}

{{spread}}

## Simulator and oracle

Utility is the sum of the qualities of all requests that are answered in time. The oracle is an upper
bound that knows all arrivals. Each row is the minimum over loads of {
    ", ".join(f"{load:g}" for load in LOADS)
} times the rate of the full plan, with the ladder of vit-t and a deadline of 200 ms.

{{oracle}}

## Decisions and wasted forwards

The decision is measured with {WAITING:,} waiting requests of mixed deadlines and minimum qualities, and
with costs that are computed again each time, as after a batch. The counts are of a run of
{late.REQUESTS:,} requests to vit-xs above its capacity, with deadlines of 20 to 500 ms; a fifth of the
clients leave before their answer.

{{decisions}}"""
