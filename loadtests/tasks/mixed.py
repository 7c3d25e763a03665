"""Images, masks and clips together on one server, each with its own deadline.

`python -m loadtests.tasks.mixed URL --json mixed.json` writes the results.
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

ANSWER_TIMEOUT_S = 8.0
CLOSED_S = 5.0
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """One kind of request with its deadline."""

    name: str
    path: str
    content: str
    deadline_ms: int
    bodies: tuple[bytes, ...]

    def head(self, plan: str = "") -> bytes:
        """The head of a request up to the value of content-length."""
        lines = [f"POST {self.path} HTTP/1.1", "host: 127.0.0.1", f"content-type: {self.content}"]
        lines += [f"x-plan: {plan}"] if plan else [f"x-slo-ms: {self.deadline_ms}"]
        return "\r\n".join([*lines, "content-length: "]).encode()


def kinds() -> tuple[TrafficClass, ...]:
    """Images to classify, images to segment, clips to classify."""
    jpegs = tuple(enlarged(jpeg) for jpeg in heldout().jpegs[:40])
    return (
        TrafficClass("images", "/classify", "image/jpeg", 300, jpegs),
        TrafficClass("masks", "/segment", "image/jpeg", 500, jpegs),
        TrafficClass("clips", "/classify", "video/mp4", 1000, heldout_clips().videos[:40]),
    )


@dataclass(frozen=True, slots=True)
class TrafficResult:
    """The outcomes of one kind of request."""

    kind: str
    per_s: float
    offered: int
    in_time: int
    refused: int
    """Refused on arrival or while waiting, without computation: 429 and 503."""
    late: int
    """All others: answered or abandoned after the deadline."""
    quality: float
    """Mean quality that the server reports for answers in time; NaN if there are none."""

    @property
    def attainment(self) -> float:
        """Share of the offered requests that were answered in time."""
        return self.in_time / self.offered


def capacity(port: int, kind: TrafficClass) -> float:
    """Requests per second of this kind alone, at full, in a closed loop."""
    body = kind.bodies[0]
    request = kind.head("full") + f"{len(body)}\r\n\r\n".encode() + body
    return asyncio.run(drive(port, request, CONNECTIONS, CLOSED_S)).per_second


def offer(
    url: str, mix: Sequence[tuple[TrafficClass, float]], seconds: float, seed: int
) -> list[TrafficResult]:
    """Send all kinds together in one open loop, each at its own rate."""
    requests: list[ScheduledRequest] = []
    kind_of: list[int] = []
    for number, (kind, rate) in enumerate(mix):
        for count, at in enumerate(schedule("poisson", rate, seconds, seed + number)):
            requests.append(
                ScheduledRequest(len(requests), float(at), kind.head(), kind.bodies[count % len(kind.bodies)])
            )
            kind_of.append(number)
    exchanges: list[Exchange] = []
    Sender(target(url, "/classify", {}), ANSWER_TIMEOUT_S, exchanges.append).send_all(
        sorted(requests, key=lambda p: p.at)
    )
    return [
        score(kind, rate, [e for e in exchanges if kind_of[e.index] == number])
        for number, (kind, rate) in enumerate(mix)
    ]


def score(kind: TrafficClass, rate: float, exchanges: Sequence[Exchange]) -> TrafficResult:
    """The outcomes of one kind; deadlines count from the scheduled time."""
    in_time = [e for e in exchanges if e.status == 200 and e.ended - e.at <= kind.deadline_ms / 1e3]
    reported = [json.loads(e.body)["compute"]["quality"] for e in in_time]
    known = [quality for quality in reported if quality is not None]
    quality = float(np.mean(known)) if known else math.nan
    refused = sum(e.status in (429, 503) for e in exchanges)
    return TrafficResult(
        kind.name,
        rate,
        len(exchanges),
        len(in_time),
        refused,
        len(exchanges) - len(in_time) - refused,
        quality,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the server")
    parser.add_argument("--seconds", type=float, default=15, help="length of each run (%(default)s)")
    parser.add_argument(
        "--loads",
        default="0.8,1.5,2.5",
        help="rates, relative to those at full (%(default)s)",
    )
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    args = parser.parse_args()
    all_kinds = kinds()
    alone = {kind.name: capacity(urlsplit(args.url).port or 80, kind) for kind in all_kinds}
    runs = {}
    for number, load in enumerate(args.loads.split(",")):
        # If all were answered at full, each kind would take an equal part of the time of the device.
        mix = [(kind, float(load) * alone[kind.name] / len(all_kinds)) for kind in all_kinds]
        results = offer(args.url, mix, args.seconds, 100 * number)
        runs[load] = [asdict(result) | {"attainment": result.attainment} for result in results]
    args.json.write_text(json.dumps({"alone_per_s": alone, "runs": runs}))


if __name__ == "__main__":
    main()
