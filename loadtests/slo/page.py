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
    terms = {
        "goals": table(["what", "measured", "goal"], goals(f)),
        "rates": table(["server", "requests/s", "top-1 of what was in time"], rates(f, peers)),
        "real": table(["run", "real", "simulated", "slower than profiled"], simulated(f)),
        "worst": table(
            ["arrivals", "utility over the oracle's"],
            [[shape, f"{f[f'oracle_ratio_{shape}']:.4f}"] for shape in SHAPES],
        ),
        "precision": setup.precision,
        "size": setup.size,
        "seconds": setup.seconds,
        "rounds": rounds,
        "promise": setup.promises_ms[0],
        "overload": OVERLOAD,
        "calm": CALM,
        "step": STEP,
        "search": PRECISION,
        "waiting": WAITING,
        "requests": late.REQUESTS,
        "loads": ", ".join(f"{load:g}" for load in LOADS),
    }
    return "\n\n".join(
        [TEXT.format_map({**f, **terms}), *(f"{n} was left out: {w}." for n, w in failed.items())]
    )


def goals(f: Figures) -> list[list[str]]:
    """What was to be shown, and what was found."""
    return [
        ["static-full in time, at the overload", f"{f['overload_static_attainment']:.1%}", "below 50%"],
        ["Foveate in time, at the overload", f"{f['overload_attainment']:.2%}", "at least 99%"],
        ["top-1 lost there", f"{f['overload_accuracy_loss_points']:.2f} points", "at most 2"],
        ["highest rate kept, over static-full's", f"{f['rate_ratio_static']:.2f}", "at least 3"],
        ["highest rate kept, over the best peer's", _number(f, "rate_ratio_best_peer"), "at least 3"],
        ["after a x4 step, in time again after", f"{f['recovery_s']:.2f} s", "at most 1 s"],
        ["after its end, at full quality again after", f"{f['quality_back_s']:.2f} s", "at most 2 s"],
        ["simulated, utility over the oracle's at worst", f"{f['oracle_ratio_min']:.3f}", "at least 0.95"],
        ["simulated against real, in time", f"{f['sim_real_gap_points']:.2f} points", "at most 3"],
        ["a decision with 1,000 waiting", f"{f['decision_ms_at_1000']:.3f} ms", "below 1 ms"],
        ["forwards for expired or cancelled requests", f"{f['late_forwards']:.0f}", "0"],
    ]


def rates(f: Figures, peers: Sequence[str]) -> list[list[str]]:
    """The highest rate of each server, and how often it was right there."""
    named = {"Foveate": "foveate", "static-full": "static-full", **{name: name for name in peers}}
    return [
        [shown, _number(f, f"rate_{name}"), _share(f, f"accuracy_at_rate_{name}")]
        for shown, name in named.items()
    ]


def simulated(f: Figures) -> list[list[str]]:
    """Real runs beside simulated ones."""
    return [
        [what, f"{f[f'sim_real_{name}_real']:.2%}", f"{f[f'sim_real_{name}_simulated']:.2%}",
         f"{f[f'sim_real_{name}_slower']:.2f}"]
        for name, what in SIMULATED.items()
    ]  # fmt: skip


SIMULATED = {
    "static": "static-full at the overload",
    "overload": "Foveate at the overload",
    "beyond": "Foveate at three times the raw rate, at no less than full's quality",
}
TEXT = """# Whether promises are kept

ViT-S/16, made from vit-t by copying channels and heads, {precision}, {size} pictures, a promise of
{promise:g} ms. Its ladder was measured by `foveate profile --with vit-xs`: below its own cheaper plans stand
those of vit-xs, a smaller trained sibling. Poisson arrivals of {seconds:g} s but for the step; medians of
{rounds} rounds, each with a server of its own for every row. The raw loop, decode and forward with nothing
around them, manages {raw_per_s:.1f} pictures/s, {raw_8_accuracy:.1%} of them right. Static-full is this
server with `--policy fifo --plan full`, in batches of 8 at most as all others. `make bench-slo` repeats it
and writes the runs of its last round to `runs/slo.html`.

Server and load generator share the machine's cores, and nothing is subtracted for it: at the overload the
generator took {generator_us_per_request:.0f} us of processor time a request, {generator_core_share:.1%} of a
core, and sent {generator_lag_ms_p99:.1f} ms late at p99.

{goals}

The overload is {overload:g} times the raw rate, {overload_per_s:.1f} requests/s. The step goes from {calm:g}
to {calm:g} x {step:g} times the raw rate for a third of the run; quarters of a second count, by scheduled
time. Full quality is that of the full plan as profiled; some cheaper plans have it too.

## Highest rate at 99% in time

Found by bisection to {search:.0%}. A rate counts as failed where two runs with different arrivals both fail.
Each server was started anew, warmed with batches, and tuned to the promise as `loadtests/peers` says.
Foveate kept {rate_ratio_raw:.2f} times what the raw loop manages.

{rates}

## The simulator

Attainment of real runs, and of the same arrivals simulated by a server that has served another run at that
rate before, as the real one has. From that run come how much longer than profiled forwards take, how evenly,
what passes between two of them, and what the wire and decoding take. Two real runs at the last of these
differed by {sim_real_spread_points:.1f} points.

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


def _share(figures: Figures, key: str) -> str:
    return f"{figures[key]:.1%}" if key in figures else "-"
