"""The Markdown page: one table of closed loops, and one table of open loops per deadline."""

import re
from collections.abc import Sequence

from loadtests.peers.config import DEADLINE_SHARE, MAX_BATCH_SIZE
from loadtests.peers.measure import CONNECTIONS, TUNED_AT, WARM_UP
from loadtests.peers.running import SERVERS
from loadtests.report import Figures, cell, table

OPEN_LOOP = re.compile(r"(\w+)_open_([\d.]+)ms_([\d.]+)x_offered")


def page(figures: Figures) -> str:
    """The page for the servers, deadlines and loads that the figures have."""
    open_loops = [match.groups() for key in figures if (match := OPEN_LOOP.fullmatch(key))]
    names = [name for name in SERVERS if any(key.startswith(f"{name}_") for key in figures)]
    deadlines = sorted({float(deadline) for _, deadline, _ in open_loops}, reverse=True)
    loads = sorted({float(load) for _, _, load in open_loops})
    parts = [
        INTRODUCTION,
        "## Raw loop\n\n" + raw_table(figures),
        "## Closed loop\n\nAnswers per second and median latency, by the number of connections. The "
        "deadline is so long that servers need not refuse requests.\n\n" + closed_loop_table(figures, names),
        *(open_loop_section(figures, names, deadline, loads) for deadline in deadlines),
    ]
    return "\n\n".join(parts)


INTRODUCTION = f"""# Other serving systems

Each server runs the same network, ViT-S/16, made from vit-t by copying channels and heads. Every server
decodes with the same function, runs the full plan, and uses the same number of threads. Foveate gets the
deadline with each request, and may answer with any plan of its ladder.

The other servers are tuned to the deadline as their documentation allows; the docstrings in
`loadtests/peers/servers` describe how. The limits on requests in the server and on their waiting time are
what {DEADLINE_SHARE:.0%} of the deadline allows at the rate that the server reaches in the closed loop at
{TUNED_AT} connections. Loads are multiples of the better rate of the raw loop. Each server answers {WARM_UP}
images before it is measured. Server and load generator share the cores, and nothing is subtracted for the
generator. `make bench-peers` repeats the bench, and installs each server into its own environment."""


def raw_table(figures: Figures) -> str:
    """The raw loop: decode and forward without HTTP."""
    rows = [
        [str(batch), cell(figures, f"raw_{batch}_per_s", "{:.1f}"),
         cell(figures, f"raw_{batch}_accuracy", "{:.1%}")]
        for batch in (1, MAX_BATCH_SIZE)
    ]  # fmt: skip
    head = ["batch size", "images/s", "top-1"]
    return f"Decode and forward in one process, without HTTP.\n\n{table(head, rows)}"


def closed_loop_table(figures: Figures, names: Sequence[str]) -> str:
    """One row per server."""
    kinds = ("per_s", "p50_ms")
    head = ["server", *(f"{c}, /s" for c in CONNECTIONS), *(f"{c}, p50 ms" for c in CONNECTIONS)]
    rows = [
        [name, *(cell(figures, f"{name}_closed_{c}_{kind}", "{:.1f}") for kind in kinds for c in CONNECTIONS)]
        for name in names
    ]
    return table(head, rows)


def open_loop_section(
    figures: Figures, names: Sequence[str], deadline_ms: float, loads: Sequence[float]
) -> str:
    """One row per server and load: the share in time, its accuracy, and how the other requests ended."""
    kinds = ("late", "refused", "expired", "error", "unanswered")
    rows = []
    for name in names:
        for load in loads:
            key = f"{name}_open_{deadline_ms:g}ms_{load:g}x"
            offered = figures.get(f"{key}_offered", 0)
            shares = [figures.get(f"{key}_{kind}", 0) / offered if offered else 0.0 for kind in kinds]
            rows.append(
                [name, f"{load:g}x", cell(figures, f"{key}_attainment", "{:.1%}"),
                 cell(figures, f"{key}_accuracy", "{:.1%}"), *(f"{share:.1%}" for share in shares),
                 cell(figures, f"{key}_latency_ms_p99", "{:.1f}")]
            )  # fmt: skip
    head = ["server", "load", "in time", "top-1", *kinds[:-1], "no answer", "p99 ms"]
    return f"""## A deadline of {deadline_ms:g} ms

Poisson arrivals. The shares are of all offered requests; top-1 is of the answers in time. "Expired" is status
504, or status 408, which mosec and Ray Serve send. TorchServe sends no answer to a request that it drops.

{table(head, rows)}"""


def installed(names: Sequence[str]) -> dict[str, str]:
    """For the table of settings: the packages that each server was installed from."""
    return {name: ", ".join(SERVERS[name].packages) for name in names if SERVERS[name].packages}
