"""The options of a load test, for the command line and for Locust, and the run that they describe."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import AskedImage
from loadtests.arrivals import SHAPES, schedule
from loadtests.load.answers import parser as load_parser
from loadtests.load.chat_records import ChatRecord
from loadtests.load.chats import PATH, ChatRequests, asked_images, chat_traffic
from loadtests.load.images import Catalogue, ImageRequests, catalogue
from loadtests.load.mix import PlannedRequests, SloClasses, plan_requests, slo_classes
from loadtests.load.target import Target, target

CLASSIFIED = ("/classify", "loadtests.load.answers:foveate", "image/jpeg")
CHATS = (PATH, "loadtests.load.chat_answers:openai_stream", "application/json")
"""Path, parser and content type of images to classify, and of chats."""
Images = Catalogue | tuple[AskedImage, ...]
"""Labelled images, or images with questions."""

OPTIONS: tuple[tuple[str, type, object, str], ...] = (
    ("shape", str, "poisson", f"arrivals: {SHAPES}"),
    ("seconds", float, 30.0, "the length of the schedule in seconds"),
    ("seed", int, 0, "the same seed sends the same requests at the same times"),
    ("slo-ms", float, 200.0, "the deadline of every request, if there is no --mix"),
    ("ttft-ms", float, 0.0, "the deadline of the first token of every chat, if there is no --mix; 0: none"),
    ("chat", str, "", "send chats: the name of a model, or JSON, or a JSON file: "
     '{"model": "vit-t-chat", "max_tokens": {"8": 3, "64": 1}, "repeated": 0.3, "follow_ups": 0.3}'),
    ("mix", str, "", "SLO classes as JSON, or a JSON file: "
     '{"interactive": {"deadline_ms": 200, "min_quality": 0.95, "priority": 1, "tenant": "a", "weight": 3}}'),
    ("pictures", str, "scene", "scene: the held-out scenes as shipped, 224x224; 640x480: enlarged"),
    ("catalogue", int, 0, "the number of different images; 0: all held-out ones"),
    ("zipf", float, 0.0, "image k is sent with a frequency of k^-zipf; 0: all equally often"),
    ("path", str, "", "the path that requests are sent to; empty: /classify, or /v1/chat/completions"),
    ("headers", str, "", "further headers of every request, as 'x-plan: full; x-other: 1'"),
    ("tenant-header", str, "x-tenant", "the header with the tenant of an SLO class"),
    ("parser", str, "", "parses answers, as package.module:function; empty: for Foveate, or for chats"),
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


class RequestSource(Protocol):
    """The requests of a run by their index."""

    def body(self, index: int) -> bytes:
        """The body of a request."""
        ...

    def is_whole(self, body: bytes) -> bool:
        """Whether the body of an answer with status 200 is that of a whole answer, at a glance."""
        ...

    def label(self, index: int) -> str:
        """The right answer."""
        ...

    def chat(self, index: int, first_token_by_s: float | None) -> ChatRecord | None:
        """What is known of a chat before its answer; None for a request that is no chat."""
        ...

    @property
    def probe(self) -> bytes:
        """The body of a request to see whether the server answers."""
        ...


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that one run sends, and where to."""

    target: Target
    slo_classes: SloClasses
    requests: PlannedRequests
    source: RequestSource
    """Their bodies and right answers."""
    span_s: float
    """The length of the schedule."""
    answer_timeout_s: float
    """From the scheduled time of a request until it counts as unanswered."""
    tenant_header: str


def load_images(options: Namespace) -> Images:
    """The images, once for all runs; with their questions for chats. Raises SetupError."""
    if options.chat:
        if options.pictures != "scene" or options.zipf:
            raise SetupError("--pictures and --zipf are for images; give the share of `repeated` in --chat")
        return asked_images(options.catalogue, options.seed)
    if options.pictures not in ("scene", "640x480"):
        raise SetupError(f"--pictures must be scene or 640x480, not {options.pictures!r}")
    return catalogue(options.pictures, options.catalogue, options.seed)


def run_spec(options: Namespace, url: str, rate: float, images: Images) -> RunSpec:
    """The run that the options describe. images: of `load_images`.

    Raises SetupError with one sentence for an invalid option.
    """
    if not options.patience_s > 0:
        raise SetupError(f"--patience-s must be above 0, not {options.patience_s:g}")
    traffic = chat_traffic(options.chat) if options.chat else None
    path, parser, content_type = CLASSIFIED if traffic is None else CHATS
    server = target(
        url,
        options.path or path,
        read_headers(options.headers),
        load_parser(options.parser or parser),
        content_type,
    )
    classes = slo_classes(options.mix, options.slo_ms, options.ttft_ms)
    if traffic is None and any(slo_class.ttft_ms for slo_class in classes.values()):
        raise SetupError("--ttft-ms is for chats; give --chat too")
    times = schedule(options.shape, rate, options.seconds, options.seed)
    weights = [slo_class.weight for slo_class in classes.values()]
    requests = plan_requests(times, weights, len(images), options.zipf, options.seed)
    source: RequestSource
    if isinstance(images, Catalogue):
        source = ImageRequests(images, requests.image)
    elif traffic is not None:
        source = ChatRequests(traffic, images, times, options.seed)
    else:
        raise SetupError("questions are asked with --chat")
    span_s = float(np.max(times)) if options.shape.startswith("trace:") else options.seconds
    return RunSpec(server, classes, requests, source, span_s, options.patience_s, options.tenant_header)


def read_headers(text: str) -> dict[str, str]:
    """Headers from 'name: value; name: value', with names in lower case. Raises SetupError."""
    headers = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, value = part.partition(":")
        if not (colon and name.strip()) or "\r" in part or "\n" in part:
            raise SetupError(f"{part!r} is not a header; write --headers as 'x-plan: full'")
        headers[name.strip().lower()] = value.strip()
    return headers
