"""The options of a load test, for the command line and for Locust, and the run that they describe."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

import numpy as np

from foveate.core.errors import SetupError
from loadtests.arrivals import SHAPES, schedule
from loadtests.load.answers import parser as load_parser
from loadtests.load.images import Catalogue, catalogue
from loadtests.load.mix import PlannedRequests, SloClasses, plan_requests, slo_classes
from loadtests.load.target import Target, target

OPTIONS: tuple[tuple[str, type, object, str], ...] = (
    ("shape", str, "poisson", f"arrivals: {SHAPES}"),
    ("seconds", float, 30.0, "the length of the schedule in seconds"),
    ("seed", int, 0, "the same seed sends the same requests at the same times"),
    ("slo-ms", float, 200.0, "the deadline of every request, if there is no --mix"),
    ("mix", str, "", "SLO classes as JSON, or a JSON file: "
     '{"interactive": {"deadline_ms": 200, "min_quality": 0.95, "priority": 1, "tenant": "a", "weight": 3}}'),
    ("pictures", str, "scene", "scene: the held-out scenes as shipped, 224x224; 640x480: enlarged"),
    ("catalogue", int, 0, "the number of different images; 0: all held-out scenes"),
    ("zipf", float, 0.0, "image k is sent with a frequency of k^-zipf; 0: all equally often"),
    ("path", str, "/classify", "the path that images are sent to"),
    ("headers", str, "", "further headers of every request, as 'x-plan: full; x-other: 1'"),
    ("tenant-header", str, "x-tenant", "the header with the tenant of an SLO class"),
    ("parser", str, "loadtests.load.answers:foveate", "parses answers, as package.module:function"),
    ("patience-s", float, 10.0, "seconds after the scheduled time until a request counts as unanswered"),
)  # fmt: skip


def add_options(parser: ArgumentParser) -> None:
    """Add all options but the address and the rate, which differ between Locust and the command line."""
    for name, kind, default, what in OPTIONS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{what} (default: {default})")


def settings_of(options: Namespace, rate: float) -> dict[str, object]:
    """The options of a run at that rate, for its JSON."""
    names = ("name", *(name.replace("-", "_") for name, *_ in OPTIONS))
    return {"rate": rate, **{name: getattr(options, name) for name in names}}


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that one run sends, and where to."""

    target: Target
    slo_classes: SloClasses
    images: Catalogue
    requests: PlannedRequests
    span_s: float
    """The length of the schedule."""
    answer_timeout_s: float
    """From the scheduled time of a request until it counts as unanswered."""
    tenant_header: str


def load_images(options: Namespace) -> Catalogue:
    """The images, once for all runs. Raises SetupError."""
    if options.pictures not in ("scene", "640x480"):
        raise SetupError(f"--pictures must be scene or 640x480, not {options.pictures!r}")
    return catalogue(options.pictures, options.catalogue, options.seed)


def run_spec(options: Namespace, url: str, rate: float, images: Catalogue) -> RunSpec:
    """The run that the options describe. Raises SetupError with one sentence for an invalid option."""
    if not options.patience_s > 0:
        raise SetupError(f"--patience-s must be above 0, not {options.patience_s:g}")
    server = target(url, options.path, read_headers(options.headers), load_parser(options.parser))
    classes = slo_classes(options.mix, options.slo_ms)
    times = schedule(options.shape, rate, options.seconds, options.seed)
    weights = [slo_class.weight for slo_class in classes.values()]
    requests = plan_requests(times, weights, len(images), options.zipf, options.seed)
    span_s = float(np.max(times)) if options.shape.startswith("trace:") else options.seconds
    return RunSpec(server, classes, images, requests, span_s, options.patience_s, options.tenant_header)


def read_headers(text: str) -> dict[str, str]:
    """Headers from 'name: value; name: value', with names in lower case. Raises SetupError."""
    headers = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, value = part.partition(":")
        if not (colon and name.strip()) or "\r" in part or "\n" in part:
            raise SetupError(f"{part!r} is not a header; write --headers as 'x-plan: full'")
        headers[name.strip().lower()] = value.strip()
    return headers
