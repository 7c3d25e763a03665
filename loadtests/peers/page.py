"""The Markdown beside the JSON: closed loops in one table, each promise in another."""

from collections.abc import Mapping, Sequence

from loadtests.peers.config import DEADLINE_SHARE, MAX_BATCH_SIZE
from loadtests.peers.measure import CONNECTIONS, TUNED_AT, WARM_UP, Figures
from loadtests.peers.running import SERVERS
from loadtests.report import table


def page(
    figures: Figures, names: Sequence[str], deadlines_ms: Sequence[float], loads: Sequence[float],
    failed: Mapping[str, str], terms: str,
) -> str:  # fmt: skip
    """`names`: the servers that were measured; `terms`: precision, pictures, seconds and rounds in words."""
    parts = [
        INTRODUCTION.format(
            terms=terms,
            batch=MAX_BATCH_SIZE,
            margin=DEADLINE_SHARE,
            warm=WARM_UP,
            tuned_at=TUNED_AT,
            **figures,
        ),
        "## Closed loop\n\nAnswers a second, nothing refused; on the right the median latency in ms.",
        closed(figures, names),
        *(open_loops(figures, names, promise, loads) for promise in deadlines_ms),
        versions(names),
    ]
    parts += [f"{name} was left out: {why}." for name, why in failed.items()]
    return "\n\n".join(parts)


INTRODUCTION = """# Other servers around the same network

ViT-S/16, made from vit-t by copying channels and heads
({terms}).
Every server decodes with the same function and runs the same network at full with as many threads; only the
serving differs. Each is tuned to the promise as its documentation allows, and docstrings in
`loadtests/peers/servers` say how: how many may be inside and how long they may wait is what {margin:.0%} of
the promise leaves room for, at the rate the server managed in the closed loop at {tuned_at} connections.
Foveate is told the promise by each request, and may answer under any plan of its ladder.

The raw loop decodes and runs pictures in one process with no HTTP: {raw_1_per_s:.1f} pictures/s one by one,
{raw_8_per_s:.1f} in batches of {batch}; {raw_8_accuracy:.1%} of its answers are right. Rates below are
multiples of the better of the two. Server and load generator share the machine's cores, and nothing is
subtracted for it. A server answers {warm} pictures before it is measured. `python -m loadtests.peers` repeats
it, and installs each server into an environment of its own."""


def closed(figures: Figures, names: Sequence[str]) -> str:
    """A row a server."""
    kinds = ("per_s", "p50_ms")
    head = ["server", *(f"{c}" for c in CONNECTIONS), *(f"p50 at {c}" for c in CONNECTIONS)]
    rows = [
        [name, *(_number(figures, f"{name}_closed_{c}_{kind}") for kind in kinds for c in CONNECTIONS)]
        for name in names
    ]
    return table(head, rows)


def open_loops(figures: Figures, names: Sequence[str], deadline_ms: float, loads: Sequence[float]) -> str:
    """A row a server and load: what was answered in time, and how often that was right."""
    rows = []
    for name in names:
        for load in loads:
            key = f"{name}_open_{deadline_ms:g}ms_{load:g}x"
            offered = figures.get(f"{key}_offered", 0)
            kinds = ("late", "refused", "expired", "error", "unanswered")
            shares = [figures.get(f"{key}_{kind}", 0) / offered if offered else 0.0 for kind in kinds]
            rows.append(
                [name, f"{load:g}x", _share(figures, f"{key}_attainment"), _share(figures, f"{key}_accuracy"),
                 *(f"{share:.1%}" for share in shares), _number(figures, f"{key}_latency_ms_p99")]
            )  # fmt: skip
    head = [
        "server",
        "load",
        "in time",
        "top-1",
        "late",
        "refused",
        "expired",
        "error",
        "no answer",
        "p99 ms",
    ]
    return f"""## A promise of {promise_ms:g} ms

Poisson arrivals. In time: share of all that were offered; top-1: among those answered in time. Expired:
a status of 504, or of 408, which mosec and Ray Serve send. TorchServe does not answer what it drops.

{table(head, rows)}"""


def versions(names: Sequence[str]) -> str:
    """What was installed for each."""
    pinned = [", ".join(SERVERS[name].packages) for name in names if SERVERS[name].packages]
    return f"Installed: {', '.join(pinned)}." if pinned else ""


def _number(figures: Figures, key: str) -> str:
    return f"{figures[key]:.1f}" if key in figures else "-"


def _share(figures: Figures, key: str) -> str:
    return f"{figures[key]:.1%}" if key in figures else "-"
