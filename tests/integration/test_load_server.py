"""The load test against a real server: every request accounted for, a stall that slows nothing but answers,
and a server that is not there."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from loadtests.load.images import catalogue
from loadtests.load.launch import launch
from tests.integration.conftest import Serve, listen
from tests.support.fake_runner import FakeRunner

STALL_S = 1.0
SECONDS, RATE = 2.5, 60
MIX = {"tight": {"deadline_ms": 150}, "easy": {"deadline_ms": 20_000}}


class Stalling(FakeRunner):
    """Knows the one picture of the catalogue, and sleeps once in the middle of its work."""

    def __init__(self, after: int) -> None:
        super().__init__()
        (label,) = catalogue("scene", 1, 0).labels
        self.card = replace(self.card, labels=(label, "another"))
        self.after = after

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        self.after -= len(batch)
        if -len(batch) < self.after <= 0:
            time.sleep(STALL_S)
        return super().run(batch, plan)


@pytest.mark.anyio
async def test_a_stall_delays_answers_and_not_the_schedule(serve: Serve, tmp_path: Path) -> None:
    served = serve(Stalling(after=40))
    what = f"--shape constant --rate {RATE} --seconds {SECONDS} --catalogue 1 --patience-s 0.6".split()
    html = tmp_path / "run.html"
    (run,) = await asyncio.to_thread(
        launch, "--url", served.url, *what, "--mix", json.dumps(MIX), "--html", str(html)
    )
    found, kinds = run.figures(), {record.kind for record in run.records}
    # Everybody who was to be sent was sent, stall or no stall, and ended in one way.
    assert found["offered"] == len(run.records) == SECONDS * RATE
    lags = np.array([record.sent - record.at for record in run.records])
    assert lags.min() >= 0
    assert np.quantile(lags, 0.9) < STALL_S / 3
    assert {"in time", "unanswered"} <= kinds <= {"in time", "late", "refused", "expired", "unanswered"}
    # Those who came during the stall waited for its end, counted from when they were due.
    waited = [r.latency_s for r in run.records if r.slo_class == "easy" and r.kind == "in time"]
    assert max(waited) > STALL_S / 3
    tight = [r for r in run.records if r.slo_class == "tight"]
    assert all(r.latency_s <= 0.15 for r in tight if r.kind == "in time")
    assert any(r.kind != "in time" for r in tight)
    # What was answered was right, and the server says what it took.
    assert found["accuracy"] == 1
    answered = [r for r in run.records if r.status == 200]
    assert all(r.rung and r.quality and {"queue", "compute"} <= set(r.timings_ms) for r in answered)
    # The server saw the same requests, and the first one that was sent to see whether it is there.
    count_kinds = served.count_kinds()
    assert sum(count_kinds.values()) == len(run.records) + 1
    assert count_kinds["cancelled"] == sum(r.kind == "unanswered" for r in run.records)
    assert "<svg" in html.read_text()


def test_a_missing_server_is_one_sentence() -> None:
    with listen() as probe:
        port = probe.getsockname()[1]
    with pytest.raises(SetupError) as told:
        launch("--url", f"http://127.0.0.1:{port}")
    sentence = str(told.value)
    assert sentence.startswith(f"no server answers at http://127.0.0.1:{port}/classify: ")
    assert "\n" not in sentence
