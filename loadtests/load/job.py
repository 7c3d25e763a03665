"""What one run is to do: its options, for the command line and for Locust alike, and what they stand for."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

import numpy as np

from foveate.core.errors import SetupError
from loadtests.arrivals import SHAPES, schedule
from loadtests.load.answers import parser as find_parser
from loadtests.load.mix import Offers, Promises, draw, promises
from loadtests.load.pictures import Catalogue, catalogue
from loadtests.load.target import Target, target

OPTIONS: tuple[tuple[str, type, object, str], ...] = (
    ("shape", str, "poisson", f"arrivals: {SHAPES}"),
    ("seconds", float, 30.0, "how long requests are sent for"),
    ("seed", int, 0, "the same seed sends the same requests at the same times"),
    ("slo-ms", float, 200.0, "the deadline of every request, where no mix says otherwise"),
    ("mix", str, "", "classes of requests as JSON, or a file that holds it: "
     '{"interactive": {"deadline_ms": 200, "min_quality": 0.95, "priority": 1, "tenant": "a", "weight": 3}}'),
    ("pictures", str, "scene", "scene: the held-out scenes as they ship, 224x224; 640x480: enlarged"),
    ("catalogue", int, 0, "how many different pictures; 0: all held-out scenes"),
    ("zipf", float, 0.0, "picture k is sent as often as k^-zipf; 0: all alike"),
    ("path", str, "/classify", "where pictures are sent to"),
    ("headers", str, "", "further headers of every request, as 'x-plan: full; x-other: 1'"),
    ("tenant-header", str, "x-tenant", "the header that carries a class's tenant"),
    ("parser", str, "loadtests.load.answers:foveate", "what reads an answer, as package.module:function"),
    ("patience-s", float, 10.0, "what is not answered so long after its time counts as never answered"),
)  # fmt: skip


def add_options(to: ArgumentParser) -> None:
    """Everything but the address and the rate, which Locust and the command line take differently."""
    for name, kind, default, what in OPTIONS:
        to.add_argument(f"--{name}", type=kind, default=default, help=f"{what} (default: {default})")


def chosen(options: Namespace, rate: float) -> dict[str, object]:
    """The options of a run at that rate, for its record."""
    names = ("name", *(name.replace("-", "_") for name, *_ in OPTIONS))
    return {"rate": rate, **{name: getattr(options, name) for name in names}}


@dataclass(frozen=True, slots=True)
class Job:
    """One run, read and drawn: who gets what, when."""

    target: Target
    promises: Promises
    pictures: Catalogue
    offers: Offers
    span_s: float
    """How long the schedule is."""
    patience_s: float
    tenant_header: str


def album(options: Namespace) -> Catalogue:
    """The pictures, once for all runs. Raises SetupError."""
    if options.pictures not in ("scene", "640x480"):
        raise SetupError(f"--pictures is scene or 640x480, not {options.pictures!r}")
    return catalogue(options.pictures, options.catalogue, options.seed)


def job(options: Namespace, url: str, rate: float, pictures: Catalogue) -> Job:
    """Raises SetupError with one sentence where something makes no sense."""
    if not options.patience_s > 0:
        raise SetupError("--patience-s must be above 0")
    aim = target(url, options.path, read_headers(options.headers), find_parser(options.parser))
    classes = promises(options.mix, options.slo_ms)
    times = schedule(options.shape, rate, options.seconds, options.seed)
    weights = [promise.weight for promise in classes.values()]
    drawn = draw(times, weights, len(pictures), options.zipf, options.seed)
    span_s = float(np.max(times)) if options.shape.startswith("trace:") else options.seconds
    return Job(aim, classes, pictures, drawn, span_s, options.patience_s, options.tenant_header)


def read_headers(text: str) -> dict[str, str]:
    """From 'name: value; name: value'. Raises SetupError."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, value = part.partition(":")
        if not (colon and name.strip()) or "\r" in part or "\n" in part:
            raise SetupError(f"{part!r} is no header; it looks like x-plan: full")
        found[name.strip().lower()] = value.strip()
    return found
