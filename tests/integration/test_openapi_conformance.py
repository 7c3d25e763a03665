"""Answers of a real server against its OpenAPI document: generated requests, real media, and every status."""

import base64
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec
from foveate.core.settings import Settings
from foveate.engine.runner import Runner
from foveate.gateway.app import create_app
from foveate.gateway.server import server
from foveate.models.runners.video_classifier import ClipRunner
from tests.integration.conftest import TIMEOUT_S, listen
from tests.support.clip_heads import clip_checkpoint
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import identity
from tests.support.media_samples import png
from tests.support.red_segmenter import RedSegmenter, red_corner_png
from tests.support.video_gateway import segmenter_with_video
from tests.support.video_samples import clip

QUERIES = {
    "/classify": "?explain=true&top_k=1",
    "/segment": "?overlay=true",
    "/embed": "?normalize=false",
}
EXAMPLES = 40
"""Generated requests of each operation and kind."""
PNG, MP4 = red_corner_png(), clip(count=8)
IMAGE = {"content-type": "image/png"}
CLIP_TASKS = ("/classify", "/segment")
TASKS = (*CLIP_TASKS, "/embed")

OUR_STATUSES = (not_a_server_error, positive_data_acceptance)
"""Checks that do not apply: 504 is a documented answer, and texts such as a model's name may be unknown."""


@dataclass
class DescribedServer:
    """A running server and its OpenAPI document."""

    url: str
    schema: Any
    runners: tuple[FakeRunner, ...]
    cluster: LocalCluster

    def assert_described(self, path: str, response: requests.Response) -> requests.Response:
        """Assert that the document has this answer of POST: its status, its media type and its schema."""
        self.schema[path]["POST"].validate_response(response)
        return response

    def post(self, path: str, body: Any = PNG, query: str = "", **headers: str) -> requests.Response:
        """The answer to a request, which is described."""
        named = IMAGE | {name.replace("_", "-"): value for name, value in headers.items()}
        response = requests.post(self.url + path + query, data=body, headers=named, timeout=TIMEOUT_S)
        return self.assert_described(path, response)


@contextmanager
def described(*others: Callable[[], Runner], **changed: Any) -> Iterator[DescribedServer]:
    """A server of a classifier, a segmenter and an embedder. others: makers of further runners; changed:
    settings."""
    runners = (FakeRunner(spec=InputSpec()), RedSegmenter(), FakeRunner("embedder", spec=InputSpec()))
    runners[2].card = replace(runners[2].card, task="embed", labels=())
    metrics, listening = Metrics(), listen()
    chosen = Settings(**{"cache_bytes": 0, "feature_bytes": 0} | changed)
    factories: list[Callable[[], Runner]] = [*(partial(identity, runner) for runner in runners), *others]
    cluster = LocalCluster(factories, metrics, chosen.queue_items, chosen.queue_bytes)
    running = server(create_app(cluster, chosen, metrics), cluster, chosen)
    thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        yield DescribedServer(url, document, runners, cluster)
    finally:
        for runner in runners:
            runner.gate.set()
        running.should_exit = running.force_exit = True
        thread.join(TIMEOUT_S)


@pytest.fixture(scope="module")
def described_server() -> Iterator[DescribedServer]:
    schemathesis.openapi.media_type("image/*", st.one_of(st.just(PNG), st.binary(max_size=64)))
    schemathesis.openapi.media_type("video/*", st.one_of(st.just(MP4), st.binary(max_size=64)))
    with described(lambda: ClipRunner(clip_checkpoint()), segmenter_with_video) as running:
        yield running


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_generated_requests_get_answers_that_the_document_describes(
    described_server: DescribedServer, mode: schemathesis.GenerationMode
) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    for result in described_server.schema.get_all_operations():
        operation = result.ok()
        negative = mode is schemathesis.GenerationMode.NEGATIVE
        if negative and operation.method == "get":
            continue  # without parameters, or with a text: there is no invalid request

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            response = case.call(timeout=TIMEOUT_S)
            assert response.status_code != 500, response.text
            seen[f"{case.method} {case.path}", response.status_code] += 1
            case.validate_response(response, excluded_checks=list(OUR_STATUSES))

        check()
    refused = {(f"POST {path}", 400) for path in TASKS}
    assert set(seen) >= refused
    if mode is schemathesis.GenerationMode.POSITIVE:
        gets = ("/models", "/livez", "/readyz", "/metrics")
        assert set(seen) >= {(f"GET {path}", 200) for path in gets} | {("GET /models/{name}/ladder", 404)}


def test_answers_to_real_media_are_described(described_server: DescribedServer) -> None:
    form = requests.Request("POST", "http://x", files={"file": ("a.png", PNG, "image/png")}).prepare()
    encoded = base64.b64encode(PNG).decode()
    bodies: tuple[tuple[Any, str], ...] = (
        (PNG, "image/png"),
        (PNG, "application/octet-stream"),
        (form.body, str(form.headers["content-type"])),
        (f'{{"data": "{encoded}"}}', "application/json"),
        (MP4, "video/mp4"),
    )
    for path in TASKS:
        for body, kind in bodies if path in CLIP_TASKS else bodies[:-1]:
            for query in ("", QUERIES[path]):
                answer = described_server.post(path, body, query, content_type=kind, x_slo_ms="60000")
                assert answer.status_code == 200, answer.text
                assert answer.headers["content-type"] == "application/json"
    mask = described_server.post("/segment", accept="image/png")
    assert (mask.status_code, mask.headers["content-type"]) == (200, "image/png")
    for name in ("fake", "red-seg"):
        response = requests.get(f"{described_server.url}/models/{name}/ladder", timeout=TIMEOUT_S)
        assert response.status_code == 200
        described_server.schema["/models/{name}/ladder"]["GET"].validate_response(response)


def wait_until_running(running: DescribedServer) -> threading.Thread:
    """A request that is in its forward until the gate of the runner is set, in a thread of its own."""
    running.runners[0].gate.clear()
    thread = threading.Thread(target=running.post, args=("/classify",))
    thread.start()
    assert running.runners[0].entered.acquire(timeout=TIMEOUT_S)
    return thread


def test_every_documented_status_of_a_task_is_sent_as_described(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = set()
    with described(max_body_bytes=100_000, body_timeout_s=0.3) as running:
        for path in TASKS:
            answers = (
                (200, running.post(path)),
                (400, running.post(path, b"")),
                (404, running.post(path, query="?model=gpt")),
                (408, running.post(path, slow_body())),
                (413, running.post(path, bytes(100_001))),
                (413, running.post(path, png(60_000, 60_000))),
                (415, running.post(path, content_type="text/plain")),
                (415, running.post(path, b"%PDF-1.7")),
                (422, running.post(path, PNG[:100])),
                (504, running.post(path, x_slo_ms="0.0001")),
            )
            for status, answer in answers:
                assert answer.status_code == status, answer.text
                statuses.add(status)
    with described(in_flight_items=1) as running:
        held = wait_until_running(running)
        refused = running.post("/classify")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        running.runners[0].gate.set()
        held.join(TIMEOUT_S)
        monkeypatch.setattr(running.runners[0], "run", None)
        assert running.post("/classify").status_code == 500
        running.cluster.draining = True
        assert running.post("/classify").status_code == 503
        described_503 = requests.get(f"{running.url}/readyz", timeout=TIMEOUT_S)
        assert described_503.status_code == 503
        running.schema["/readyz"]["GET"].validate_response(described_503)
    documented = {
        int(status) for status in running.schema.raw_schema["paths"]["/classify"]["post"]["responses"]
    }
    assert statuses | {429, 500, 503} == documented


def slow_body() -> Iterator[bytes]:
    """A body that takes longer than the server waits."""
    yield b"a"
    time.sleep(0.6)
    yield b"b"


def test_a_path_that_is_not_described_is_refused_with_its_methods(described_server: DescribedServer) -> None:
    for path, allowed in (("/classify", "POST"), ("/models", "GET, HEAD"), ("/livez", "GET, HEAD")):
        response = requests.put(described_server.url + path, timeout=TIMEOUT_S)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)
        assert response.headers["content-type"] == "application/problem+json"
