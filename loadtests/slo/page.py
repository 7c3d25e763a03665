"""The Markdown beside the JSON and the HTML."""

from collections.abc import Mapping, Sequence

from loadtests.peers.measure import Figures, Setup
from loadtests.report import table
from loadtests.slo import late
from loadtests.slo.decisions import WAITING
from loadtests.slo.live import CALM, OVERLOAD, PRECISION, STEP
from loadtests.slo.simulated import LOADS, SHAPES


def page(f: Figures, peers: Sequence[str], failed: Mapping[str, str], setup: Setup, rounds: int) -> str:
    """All figures, with what was done to get them."""
    goals = [
        ("static-full in time, at the overload", f"{f['overload_static_attainment']:.1%}", "below 50%"),
        ("Foveate in time, at the overload", f"{f['overload_attainment']:.2%}", "at least 99%"),
        ("top-1 lost there", f"{f['overload_accuracy_loss_points']:.2f} points", "at most 2"),
        ("highest rate kept, over static-full's", f"{f['rate_ratio_static']:.2f}", "at least 3"),
        ("highest rate kept, over the best peer's", _number(f, "rate_ratio_best_peer"), "at least 3"),
        ("after a x4 step, in time again after", f"{f['recovery_s']:.2f} s", "at most 1 s"),
        ("after its end, at full again after", f"{f['quality_back_s']:.2f} s", "at most 2 s"),
        ("simulated, utility over the oracle's at worst", f"{f['oracle_ratio_min']:.3f}", "at least 0.95"),
        ("simulated against real, in time", f"{f['sim_real_gap_points']:.2f} points", "at most 3"),
        ("a decision with 1,000 waiting", f"{f['decision_ms_at_1000']:.3f} ms", "below 1 ms"),
        ("forwards for expired or cancelled requests", f"{f['late_forwards']:.0f}", "0"),
    ]
    rates = [["Foveate", f"{f['rate_ours']:.1f}"], ["static-full", f"{f['rate_static']:.1f}"]]
    rates += [[name, _number(f, f"rate_{name}")] for name in peers]
    real = [
        [what, f"{f[f'sim_real_{name}_real']:.2%}", f"{f[f'sim_real_{name}_simulated']:.2%}",
         f"{f[f'sim_real_{name}_slower']:.2f}"]
        for name, what in SIMULATED.items()
    ]  # fmt: skip
    worst = [[shape, f"{f[f'oracle_ratio_{shape}']:.4f}"] for shape in SHAPES]
    text = TEXT.format(
        goals=table(["what", "measured", "goal"], [list(row) for row in goals]),
        rates=table(["server", "requests/s"], rates),
        real=table(["run", "real", "simulated", "slower than profiled"], real),
        worst=table(["arrivals", "utility over the oracle's"], worst),
        precision=setup.precision, size=setup.size, seconds=setup.seconds, rounds=rounds,
        promise=setup.promises_ms[0], overload=OVERLOAD, calm=CALM, step=STEP, search=PRECISION,
        waiting=WAITING, requests=late.REQUESTS, loads=", ".join(f"{load:g}" for load in LOADS), **f,
    )  # fmt: skip
    return "\n\n".join([text, *(f"{name} was left out: {why}." for name, why in failed.items())])


SIMULATED = {
    "static": "static-full at the overload",
    "overload": "Foveate at the overload",
    "beyond": "Foveate at three times the raw rate, at no less than full's quality",
}


TEXT = """# Whether promises are kept

ViT-S/16, made from vit-t by copying channels and heads, {precision}, {size} pictures, a promise of
{promise:g} ms. Poisson arrivals of {seconds:g} s but for the step; medians of {rounds} rounds, each with
a server of its own for every row. The raw loop, decode and forward with nothing around them, manages
{raw_per_s:.1f} pictures/s, {raw_8_accuracy:.1%} of them right. Static-full is this server with
`--policy fifo --plan full`. Server and load generator share the machine's cores, and nothing is subtracted
for it. `make bench-slo` repeats it; [the page of the last round](slo.html) shows its runs.

{goals}

The overload is {overload:g} times the raw rate, {overload_per_s:.1f} requests/s. The step goes from {calm:g}
to {calm:g} x {step:g} times the raw rate for a third of the run; quarters of a second count, by scheduled
time.

## Highest rate at 99% in time

Found by bisection to {search:.0%}, each server started anew, and tuned to the promise as
[the comparison](peers.md) says. No server that runs the full network can keep more than the raw loop
manages; Foveate keeps {rate_ratio_raw:.2f} times that.

{rates}

## The simulator

Attainment of real runs, and of the same arrivals simulated; what batches cost and what the wire and decoding
take is learnt from another run at the same rate.

{real}

Utility, the sum of the qualities of what was answered in time, over an upper bound that knows all arrivals:
the least over loads of {loads} times what full can serve, vit-t's ladder, 200 ms.

{worst}

## Decisions

With {waiting} waiting, deadlines and floors mixed, and prices reckoned anew: {decision_ms_at_1000:.3f} ms to
choose what runs next, {admission_ms_at_1000:.3f} ms to admit one more. Of {requests} requests to vit-xs at
more than it can serve, with promises of 20 to 500 ms, of which a fifth left before their answer,
{late_ran:.0f} ran and {late_answered:.0f} were answered; {late_forwards:.0f} had expired or left when their
forward began."""


def _number(figures: Figures, key: str) -> str:
    return f"{figures[key]:.2f}" if key in figures else "-"
