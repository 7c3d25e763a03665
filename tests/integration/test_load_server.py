"""The load test against a real server: it accounts for every request, and a stall delays only answers."""

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
from tests.integration.conftest import TIMEOUT_S, Serve, listen
from tests.support.fake_runner import FakeRunner

STALL_S, PATIENCE_S = 2.0, 1.4
"""Clients abandon the first requests of the stall. The latest ones that wait for more than a third of it are
answered 0.7 s before their clients leave, which is enough on a busy machine."""
SECONDS, RATE = 3.5, 40
MIX = {"tight": {"deadline_ms": 150}, "easy": {"deadline_ms": 20_000}}


class StallingRunner(FakeRunner):
    """Classifies the one image of the catalogue, and sleeps once after some requests."""

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
    served = serve(StallingRunner(after=40))
    options = f"--shape constant --rate {RATE} --seconds {SECONDS} --catalogue 1".split()
    html = tmp_path / "run.html"
    (run,) = await asyncio.to_thread(
        launch, "--url", served.url, *options, "--patience-s", f"{PATIENCE_S}",
        "--mix", json.dumps(MIX), "--html", str(html),
    )  # fmt: skip
    figures, kinds = run.figures(), {record.kind for record in run.records}
    # Every scheduled request was sent in spite of the stall, and ended in one way.
    assert figures["offered"] == len(run.records) == SECONDS * RATE
    lags = np.array([record.sent - record.at for record in run.records])
    assert lags.min() >= 0
    assert np.quantile(lags, 0.9) < STALL_S / 3
    assert {"in time", "unanswered"} <= kinds <= {"in time", "late", "refused", "expired", "unanswered"}
    # The latency of requests during the stall counts from their scheduled time.
    latencies = [r.latency_s for r in run.records if r.slo_class == "easy" and r.kind == "in time"]
    assert max(latencies) > STALL_S / 3
    tight = [r for r in run.records if r.slo_class == "tight"]
    assert all(r.latency_s <= 0.15 for r in tight if r.kind == "in time")
    assert any(r.kind != "in time" for r in tight)
    # The answers are correct, and the server reports their timings.
    assert figures["accuracy"] == 1
    answered = [r for r in run.records if r.status == 200]
    assert all(r.rung and r.quality and {"queue", "compute"} <= set(r.timings_ms) for r in answered)
    # The server counts each request that began once. An answer may cross the client's disconnect, and the
    # generator does not send a request that it reaches only after the patience.
    until = time.monotonic() + TIMEOUT_S
    while sum(served.counted().values()) != served.events.count("begun"):
        assert time.monotonic() < until
        await asyncio.sleep(0.05)
    counts = served.counted()
    assert counts["ok"] > len(answered), "the answered requests and the probe"
    assert 0 < counts["cancelled"] <= sum(r.kind == "unanswered" for r in run.records)
    assert "<svg" in html.read_text()


def test_a_missing_server_is_an_error_of_one_sentence() -> None:
    with listen() as probe:
        port = probe.getsockname()[1]
    with pytest.raises(SetupError) as caught:
        launch("--url", f"http://127.0.0.1:{port}")
    sentence = str(caught.value)
    assert sentence.startswith(f"no server answers at http://127.0.0.1:{port}/classify: ")
    assert "\n" not in sentence
