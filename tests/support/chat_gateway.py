"""A real server on a real port with a tiny vision-language model, and the official client in front of it."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import httpx
import openai
import torch

from foveate.cluster import Slot
from foveate.cluster.local import LocalCluster
from foveate.core.chat import ChatCall, ChatEvent
from foveate.core.metrics import Metrics
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.core.settings import Settings
from foveate.engine.hang import HangLimits
from foveate.gateway.app import create_app
from foveate.gateway.limits import AdmissionLimiter
from foveate.gateway.server import DrainingServer, server
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.slo_policy import SloPolicy
from tests.support import chat_models
from tests.support.chat_engines import RecordedChatRunner
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import identity
from tests.support.http_connections import WAIT_S, ByteConnection
from tests.support.media_samples import encode, scene

PATH = "/v1/chat/completions"
NAME = chat_models.NAME


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@cache
def picture_url() -> str:
    return data_url(encode(scene(96, 64), "PNG"))


def picture(detail: str | None = None, url: str | None = None) -> dict[str, Any]:
    """A part with a picture."""
    source = {"url": url or picture_url()} | ({} if detail is None else {"detail": detail})
    return {"type": "image_url", "image_url": source}


def text(words: str = "what is left of the fox?") -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> Any:
    """A message of the user, with a picture and a question unless there are other parts."""
    return {"role": "user", "content": list(parts or (picture(), text()))}


def body(**changed: Any) -> dict[str, Any]:
    """The body of a short request."""
    return {"model": NAME, "messages": [user()], "max_tokens": 4} | changed


class RecordingCluster(LocalCluster):
    """A local cluster that records the chats that reach it."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.calls: list[ChatCall] = []
        self.reserved: list[ChatCall] = []
        """The calls as they were before their pictures were decoded."""

    def reserve(
        self,
        model: str,
        objective: Objective,
        plan: Plan | None,
        ready_in_s: float,
        call: ChatCall | None = None,
    ) -> Slot:
        slot = super().reserve(model, objective, plan, ready_in_s, call)
        self.reserved += [] if call is None else [call]
        return slot

    async def chat(self, call: ChatCall, reserved: bool = False) -> AsyncGenerator[ChatEvent, None]:
        assert reserved
        self.calls.append(call)
        async with aclosing(super().chat(call, reserved)) as events:
            async for event in events:
                yield event


async def send_chat(connection: ByteConnection, fields: dict[str, Any]) -> None:
    """Send a request, and read no answer."""
    content = json.dumps(fields).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    await connection.send(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)


async def until(condition: Any) -> None:
    """Wait for what is due at once."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class ChatServer:
    """A running server with one chat model and one classifier, `fake`."""

    server: DrainingServer
    cluster: RecordingCluster
    runner: RecordedChatRunner
    metrics: Metrics
    port: int
    client: openai.AsyncOpenAI
    """The official client. It does not retry."""

    @property
    def create(self) -> Any:
        """The client's method for chats. Its types are too narrow for tables of options."""
        return self.client.chat.completions.create

    async def post(self, content: Any = None, path: str = PATH, **headers: str) -> httpx.Response:
        """Send a body, by default a short request; anything but bytes as JSON. Underscores in the names of
        headers stand for hyphens."""
        content = body() if content is None else content
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        named = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        async with self.http() as client:
            return await client.post(path, content=data, headers=named)

    @property
    def limiter(self) -> AdmissionLimiter:
        """Counts the requests in flight and the bytes of their bodies."""
        return self.server.limiter

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=WAIT_S, trust_env=False)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[ByteConnection]:
        """A connection for raw bytes."""
        connection = ByteConnection(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield connection
        finally:
            await connection.close()

    def counted(self, outcome: str, model: str = NAME) -> float:
        """The chats of this outcome."""
        return self.metric("foveate_requests_total", model=model, task="chat", outcome=outcome)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 if it has no such series."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def slow_down(self, seconds: float) -> None:
        """Make each step of decoding take so much longer."""
        self.runner.before = lambda stage, _: time.sleep(seconds if stage == "decode" else 0)

    def fail(self, failing: str, error: Exception) -> None:
        """Make each forward of a stage fail."""

        def before(stage: str, _: Any) -> None:
            if stage == failing:
                raise error

        self.runner.before = before


@asynccontextmanager
async def chat_listening(
    runner: RecordedChatRunner | None = None, **settings: Any
) -> AsyncIterator[ChatServer]:
    """A server with these settings. runner: None for one with two slots."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    metrics, all_settings = Metrics(), Settings(port=0, **settings)
    runner = runner or RecordedChatRunner(slots=2, slot_tokens=256)
    cluster = RecordingCluster(
        [partial(identity, each) for each in (runner, FakeRunner())], metrics, all_settings.queue_items,
        policy=Fifo if all_settings.policy == "fifo" else SloPolicy,
        chat_feature_bytes=all_settings.chat_feature_bytes, chat_prefix_bytes=all_settings.chat_prefix_bytes,
        hang_limits=HangLimits(all_settings.hang_timeout_s, all_settings.hang_restart_s),
    )  # fmt: skip
    app = create_app(cluster, all_settings, metrics)
    running = server(app, cluster, all_settings)
    serving = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    client = openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key="unused",
        max_retries=0,
        timeout=WAIT_S,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    )
    try:
        async with client:
            yield ChatServer(running, cluster, runner, metrics, port, client)
    finally:
        runner.gate.set()
        running.should_exit = True
        await asyncio.wait_for(serving, WAIT_S)
        torch.set_num_threads(threads)
