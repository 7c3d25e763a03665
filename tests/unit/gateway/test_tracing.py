"""Traces: one span for each request and stage, sent to a collector."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from tests.support.chat_gateway import NAME, body, chat_listening
from tests.support.fake_runner import FakeRunner

pytestmark = pytest.mark.anyio
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """An OTLP/HTTP collector that keeps the spans it gets."""

    def __init__(self) -> None:
        spans = self.spans = []  # type: ignore[var-annotated]

        class SpanHandler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    spans.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), SpanHandler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1/traces"


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.server.shutdown()
    running.server.server_close()
    running.thread.join()


async def test_a_request_and_its_stages_are_spans_of_the_callers_trace(collector: Collector) -> None:
    settings, metrics = Settings(traces=collector.url, cache_bytes=0), Metrics()
    app = create_app(LocalCluster([FakeRunner], metrics), settings, metrics)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        headers = {"content-type": "image/jpeg", "traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert (await client.post("/classify", content=b"image", headers=headers)).status_code == 200
        assert (await client.post("/classify", content=b"", headers=headers)).status_code == 400
    answered, refused = (span for span in collector.spans if span.name == "POST /classify")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert {answered.parent_span_id.hex(), refused.parent_span_id.hex()} == {PARENT}
    attributes = {item.key: item.value for item in answered.attributes}
    assert attributes["foveate.plan"].string_value == "fake@32/fp32"
    assert attributes["foveate.outcome"].string_value == "ok"
    assert attributes["http.response.status_code"].int_value == 200
    stages = [span for span in collector.spans if span.parent_span_id == answered.span_id]
    assert [span.name for span in sorted(stages, key=lambda span: span.end_time_unix_nano)] == [
        "preprocess", "queue", "compute",
    ]  # fmt: skip
    for span in stages:
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= answered.end_time_unix_nano
    assert len(collector.spans) == 5, "a refused request has no stages"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chat_has_spans_of_its_stages(collector: Collector, stream: bool) -> None:
    async with chat_listening(traces=collector.url) as chats:
        response = await chats.post(body(stream=stream))
    assert response.status_code == 200
    names = {span.name for span in collector.spans}
    assert names == {"POST /v1/chat/completions", "preprocess", "queue", "prefill", "generate"}
    (root,) = (span for span in collector.spans if span.name.startswith("POST"))
    attributes = {attribute.key: attribute.value.string_value for attribute in root.attributes}
    assert attributes["foveate.plan"] == f"{NAME}@64/fp32"
    assert attributes["foveate.outcome"] == "ok"
