"""Widening keeps the function; a job's numbers keep the promise; servers are started and ended whole."""

import asyncio
import socket
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.resolve import resolve
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import attach
from foveate.models.weights.hub import Checkpoint
from foveate.models.zoo import Card
from foveate.models.zoo.heldout import heldout
from loadtests.peers.__main__ import medians
from loadtests.peers.job import MARGIN, Job
from loadtests.peers.model import saved, widen
from loadtests.peers.page import page
from loadtests.peers.running import Server, processes, running
from loadtests.peers.servers.fastapi_server import application
from loadtests.peers.work import Work

TINY = ViTConfig(image_size=32, patch_size=16, width=12, depth=2, heads=2, classes=5)
SHAPES = {
    "plain": TINY,
    "distilled, registers, layer scale": replace(TINY, distilled=True, registers=2, layer_scale=True),
    "mean of patches, norm first": replace(TINY, pool="avg", fc_norm=True, final_norm=False, pre_norm=True),
    "positions for patches alone, no biases": replace(
        TINY, embed_prefix=False, qkv_bias=False, patch_bias=False
    ),
    "features": replace(TINY, classes=0),
}


def tiny(config: ViTConfig) -> Checkpoint:
    """Random weights large enough for every part to matter."""
    torch.manual_seed(0)
    state = {n: 0.5 * torch.randn(p.shape) for n, p in ElasticViT(config).named_parameters()}
    labels = tuple(f"label {i}" for i in range(config.classes))
    return attach(Card("tiny", config, labels), state, "tiny")


def logits(checkpoint: Checkpoint, images: torch.Tensor) -> torch.Tensor:
    model = checkpoint.model
    plan = Plan(checkpoint.name, checkpoint.config.image_size)
    with torch.inference_mode():
        return model(images, resolve(model, plan)).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("times", [2, 3])
def test_widening_keeps_the_function(config: ViTConfig, times: int) -> None:
    narrow = tiny(config)
    wide = widen(narrow, "wide", times)
    assert (wide.config.width, wide.config.heads) == (times * 12, times * 2)
    images = torch.randn(3, 3, 32, 32)
    expected, found = logits(narrow, images), logits(wide, images)
    assert expected.std() > 0.1
    if not config.classes:  # its features are channels, and these are copied
        expected = expected.repeat(1, times)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_norms_inside_attention_are_not_widened() -> None:
    with pytest.raises(SetupError, match="wide does not fit the trunk"):
        widen(tiny(replace(TINY, qk_norm=True)), "wide")


def test_the_saved_model_is_a_vit_s_that_answers_as_vit_t(tmp_path: Path) -> None:
    path = saved(tmp_path)
    written = path.stat().st_mtime_ns
    assert saved(tmp_path) == path and path.stat().st_mtime_ns == written, "it is made once"
    narrow, wide = hub.load("vit-t"), hub.load(str(path))
    g = wide.config
    assert (g.width, g.heads, g.depth, g.patch_size) == (384, 6, 12, 16)
    assert (wide.labels, wide.mean, wide.std, wide.input) == (
        narrow.labels, narrow.mean, narrow.std, narrow.input,
    )  # fmt: skip
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(logits(wide, images), logits(narrow, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [5.0, 26.0, 400.0])
@pytest.mark.parametrize("slo_ms", [100.0, 250.0, 500.0, 60_000.0])
def test_what_a_job_lets_in_ends_within_the_promise(rate: float, slo_ms: float) -> None:
    job = Job("w.safetensors", "fp32", 1, slo_ms, rate)
    assert 1 <= job.batch <= job.capacity or job.capacity == 1
    if job.capacity > 1:
        assert job.capacity / rate <= MARGIN * slo_ms / 1e3
        assert job.patience_ms / 1e3 + job.batch / rate <= MARGIN * slo_ms / 1e3 + 1e-9
    assert Job.read(job.environment()) == job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    path = tmp_path / "tiny.safetensors"
    hub.save(path, tiny(TINY))
    return Job(str(path), "fp32", 0, 200.0, 20.0)


def test_work_answers_in_the_shape_that_load_tests_read(job: Job) -> None:
    work, jpegs = Work(job), heldout().jpegs[:3]
    answers = work.classify([work.decode(jpeg) for jpeg in jpegs])
    alone = [work.classify([work.decode(jpeg)])[0] for jpeg in jpegs]
    assert answers == alone
    first = answers[0]["predictions"][0]
    assert first["label"] == f"label {first['index']}"


@pytest.mark.anyio
async def test_plain_fastapi_refuses_what_it_cannot_answer_in_time(job: Job) -> None:
    app, jpeg = application(job), heldout().jpegs[0]
    assert job.capacity == 3
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://peer") as client:
        together = await asyncio.gather(*(client.post("/classify", content=jpeg) for _ in range(5)))
        after = await client.post("/classify", content=jpeg)
    assert sorted(answer.status_code for answer in together) == [200, 200, 200, 503, 503]
    assert after.json() == next(a.json() for a in together if a.status_code == 200)


ANSWERS = """
    import http.server, subprocess, sys
    from loadtests.peers.job import Job
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")
    http.server.HTTPServer(("127.0.0.1", Job.read().port), Handler).serve_forever()
"""


def started(program: str, tmp_path: Path, job: Job) -> tuple[Server, Path, Job, bytes, Path]:
    """Arguments of `running` for a program."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server("test", ("-c", textwrap.dedent(program)))
    own = replace(job, port=port, token=f"test-peers-{time.monotonic_ns()}")
    return server, Path(sys.executable), own, b"jpeg", tmp_path / "log.txt"


def test_a_server_ends_with_all_that_it_has_started(tmp_path: Path, job: Job) -> None:
    arguments = started(ANSWERS, tmp_path, job)
    token = arguments[2].token
    with running(*arguments):
        assert len(processes(token)) == 2
    assert processes(token) == []


def test_a_server_that_ends_before_it_answers_is_told_of(tmp_path: Path, job: Job) -> None:
    with (
        pytest.raises(RuntimeError, match="did not answer"),
        running(*started("raise SystemExit", tmp_path, job)),
    ):
        pass


def test_the_page_tells_of_every_server_with_medians_over_the_rounds() -> None:
    raw = {"raw_1_per_s": 20.0, "raw_8_per_s": 26.0, "raw_8_accuracy": 0.99}
    key = "mosec_open_500ms_2x"
    rounds = [
        raw | {f"{key}_offered": 200.0, f"{key}_attainment": share, f"{key}_refused": 50.0}
        for share in (0.2, 0.9, 0.3)
    ]
    rounds[0][f"{key}_accuracy"] = 0.5  # in the other two nobody was answered
    text = page(medians(rounds), ["mosec"], [500.0], [2.0], {"ray": "it did not install"}, "bf16")
    assert "| mosec | 2x | 30.0% | 50.0% | 0.0% | 25.0% | 0.0% | 0.0% | 0.0% | - |" in text
    assert "ray was left out: it did not install." in text
    assert "Installed: mosec==" in text
