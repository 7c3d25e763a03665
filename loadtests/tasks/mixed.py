"""Pictures, masks and clips at once on one server, each with a promise of its own: who is answered in time.

`python -m loadtests.tasks.mixed URL --seconds 15 --loads 0.8,1.5` prints JSON.
"""

import argparse
import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from foveate.models.zoo.heldout import heldout, heldout_clips
from loadtests.arrivals import schedule
from loadtests.closed_loop import drive
from loadtests.load.records import Exchange
from loadtests.load.sender import ScheduledRequest, Sender
from loadtests.load.target import target
from loadtests.tasks.clicking import enlarged

PATIENCE_S = 8.0
CLOSED_S = 5.0
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """One sort of request."""

    name: str
    path: str
    content: str
    deadline_ms: int
    bodies: tuple[bytes, ...]

    def head(self, plan: str = "") -> bytes:
        """But for content-length's value."""
        lines = [f"POST {self.path} HTTP/1.1", "host: 127.0.0.1", f"content-type: {self.content}"]
        lines += [f"x-plan: {plan}"] if plan else [f"x-slo-ms: {self.deadline_ms}"]
        return "\r\n".join([*lines, "content-length: "]).encode()


def kinds() -> tuple[TrafficClass, ...]:
    """Pictures to name, pictures to outline, clips to name."""
    jpegs = tuple(enlarged(jpeg) for jpeg in heldout().jpegs[:40])
    return (
        TrafficClass("pictures", "/classify", "image/jpeg", 300, jpegs),
        TrafficClass("masks", "/segment", "image/jpeg", 500, jpegs),
        TrafficClass("clips", "/classify", "video/mp4", 1000, heldout_clips().films[:40]),
    )


@dataclass(frozen=True, slots=True)
class TrafficResult:
    """How one kind of request fared."""

    kind: str
    per_s: float
    offered: int
    in_time: int
    refused: int
    """At once, or while waiting, before anything was computed: 429 and 503."""
    late: int
    """All others: answered or given up after the deadline."""
    quality: float
    """Mean of what was answered in time, as the server says; NaN where nothing was."""

    @property
    def attainment(self) -> float:
        return self.in_time / self.offered


def capacity(port: int, kind: TrafficClass) -> float:
    """Requests a second at full, in a closed loop, this kind alone."""
    body = kind.bodies[0]
    request = kind.head("full") + f"{len(body)}\r\n\r\n".encode() + body
    return asyncio.run(drive(port, request, CONNECTIONS, CLOSED_S)).per_second


def offer(
    url: str, mix: Sequence[tuple[TrafficClass, float]], seconds: float, seed: int
) -> list[TrafficResult]:
    """Every kind at its own rate, in an open loop, all at once."""
    requests: list[ScheduledRequest] = []
    whose: list[int] = []
    for number, (kind, rate) in enumerate(mix):
        for count, at in enumerate(schedule("poisson", rate, seconds, seed + number)):
            requests.append(
                ScheduledRequest(len(requests), float(at), kind.head(), kind.bodies[count % len(kind.bodies)])
            )
            whose.append(number)
    ended: list[Exchange] = []
    Sender(target(url, "/classify", {}), PATIENCE_S, ended.append).send_all(
        sorted(requests, key=lambda p: p.at)
    )
    return [
        score(kind, rate, [one for one in ended if whose[one.index] == number])
        for number, (kind, rate) in enumerate(mix)
    ]


def score(kind: TrafficClass, rate: float, ended: Sequence[Exchange]) -> TrafficResult:
    """Of what was offered, what was answered before its deadline, which counts from the scheduled time."""
    good = [e for e in ended if e.status == 200 and e.ended - e.at <= kind.deadline_ms / 1e3]
    said = [json.loads(e.body)["compute"]["quality"] for e in good]
    known = [quality for quality in said if quality is not None]
    quality = float(np.mean(known)) if known else math.nan
    refused = sum(e.status in (429, 503) for e in ended)
    return TrafficResult(
        kind.name, rate, len(ended), len(good), refused, len(ended) - len(good) - refused, quality
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument(
        "--loads", default="0.8,1.5,2.5", help="times what is managed at full, all kinds together"
    )
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    every = kinds()
    alone = {kind.name: capacity(urlsplit(args.url).port or 80, kind) for kind in every}
    runs = {}
    for number, load in enumerate(args.loads.split(",")):
        # Each kind takes an equal part of the device's time, were all answered at full.
        mix = [(kind, float(load) * alone[kind.name] / len(every)) for kind in every]
        found = offer(args.url, mix, args.seconds, 100 * number)
        runs[load] = [asdict(one) | {"attainment": one.attainment} for one in found]
    args.json.write_text(json.dumps({"alone_per_s": alone, "runs": runs}))


if __name__ == "__main__":
    main()
