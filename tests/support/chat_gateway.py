"""A real server on a real port with a tiny vision-language model, and the official client in front of it."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import openai
import torch

from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.limits import AdmissionLimiter
from foveate.gateway.server import DrainingServer, server
from foveate.models.vlm.runner import ChatRunner
from tests.support import chat_models
from tests.support.chat_cluster import OneByOneCluster
from tests.support.fake_runner import FakeRunner
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


@dataclass
class ChatServer:
    """A running server with one chat model and one classifier, `fake`."""

    server: DrainingServer
    cluster: OneByOneCluster
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
        labels = {"model": model, "task": "chat", "outcome": outcome}
        return self.metrics.registry.get_sample_value("foveate_requests_total", labels) or 0.0


@asynccontextmanager
async def chat_listening(**settings: Any) -> AsyncIterator[ChatServer]:
    """A server with these settings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    metrics, all_settings = Metrics(), Settings(port=0, **settings)
    with TemporaryDirectory() as folder:
        runner = ChatRunner(chat_models.load(Path(folder)), slots=2, slot_tokens=256)
    cluster = OneByOneCluster(runner, FakeRunner())
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
            yield ChatServer(running, cluster, metrics, port, client)
    finally:
        running.should_exit = True
        await asyncio.wait_for(serving, WAIT_S)
        torch.set_num_threads(threads)
