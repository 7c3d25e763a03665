"""The plain FastAPI server refuses requests over its capacity."""

import asyncio
from pathlib import Path

import httpx
import pytest

from foveate.models.zoo.heldout import heldout
from loadtests.peers.servers.fastapi_server import application
from tests.support.peer_models import tiny_config


@pytest.mark.anyio
async def test_requests_over_the_capacity_are_refused(tmp_path: Path) -> None:
    config, jpeg = tiny_config(tmp_path), heldout().jpegs[0]
    assert config.capacity == 3
    transport = httpx.ASGITransport(application(config))
    async with httpx.AsyncClient(transport=transport, base_url="http://peer") as client:
        together = await asyncio.gather(*(client.post("/classify", content=jpeg) for _ in range(5)))
        after = await client.post("/classify", content=jpeg)
    assert sorted(answer.status_code for answer in together) == [200, 200, 200, 503, 503]
    assert after.json() == next(a.json() for a in together if a.status_code == 200)
