"""The lag of an event loop."""

import asyncio
import base64
import json
import time

from loadtests.chat.loop_lag import body, record_lag


def test_a_blocked_loop_shows_as_lag() -> None:
    async def blocked() -> list[float]:
        lags_s: list[float] = []
        recorder = asyncio.create_task(record_lag(lags_s))
        await asyncio.sleep(0.05)
        time.sleep(0.3)  # noqa: ASYNC251 -- it blocks the loop on purpose
        await asyncio.sleep(0.05)
        recorder.cancel()
        return lags_s

    lags_s = asyncio.run(blocked())
    assert max(lags_s) > 0.25 and min(lags_s) >= 0


def test_a_body_has_the_picture_as_a_data_url() -> None:
    parts = json.loads(body("m", b"jpeg"))["messages"][0]["content"]
    assert parts[0]["image_url"]["url"] == f"data:image/jpeg;base64,{base64.b64encode(b'jpeg').decode()}"
