"""The examples run as they are: each in a process of its own, asked over HTTP, and ended by a signal."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from foveate.core.profile import Profile
from tests.e2e.serving import environment, free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TIMEOUT_S = 240.0
FOX, BICYCLE = (EXAMPLES / "drawn" / name for name in ("fox.jpg", "bicycle.jpg"))
MAX_LINES = 10


@contextmanager
def example(folder: Path, *command: str, ready: str = "/readyz") -> Iterator[httpx.Client]:
    """A client of a server that this command starts on a free port. It is ended by SIGTERM."""
    port = free_port()
    roots = os.pathsep.join(str(ROOT / root) for root in ("core", "gateway", "models", "services"))
    variables = {
        "PORT": str(port), "FOVEATE_PORT": str(port), "PYTHONPATH": roots, "FOVEATE_PRECISION": "fp32",
        "FOVEATE_THREADS": "1",
    }  # fmt: skip
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env=environment(folder) | variables
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S, trust_env=False) as client,
    ):
        try:
            wait_until_ready(client, ready, process, log)
            yield client
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(client: httpx.Client, path: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once GET on the path is answered with 200 or 405."""
    until = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < until:
        try:
            if client.get(path).status_code in (200, 405):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def classify(client: httpx.Client, image: Path, **headers: str) -> httpx.Response:
    return client.post("/classify", files={"file": image.read_bytes()}, headers=headers)


def test_torch_module(tmp_path: Path) -> None:
    with example(tmp_path, sys.executable, str(EXAMPLES / "torch_module.py")) as client:
        answer = classify(client, FOX).raise_for_status().json()
        assert answer["model"] == "colour"
        assert {each["label"] for each in answer["predictions"]} == {"red", "green", "blue"}
        assert sum(each["score"] for each in answer["predictions"]) == pytest.approx(1, abs=1e-4)
        assert classify(client, FOX).headers["x-cache"] == "hit"  # it states a version
        smaller = classify(client, FOX, **{"x-plan": "colour@64"}).raise_for_status().json()
        assert smaller["compute"]["rung"] == "colour@64"
        refused = classify(client, FOX, **{"x-plan": "colour@96"})
        assert refused.status_code == 400
        assert "64, 128, 224" in refused.json()["detail"]


def test_the_same_file_by_name(tmp_path: Path) -> None:
    name = f"{EXAMPLES / 'torch_module.py'}:Model"
    command = (sys.executable, "-m", "foveate.gateway.cli", "serve", "--model", name)
    with example(tmp_path, *command) as client:
        assert classify(client, FOX).raise_for_status().json()["model"] == "colour"


def test_predict_and_profile(tmp_path: Path) -> None:
    name = f"{EXAMPLES / 'torch_module.py'}:Model"
    roots = os.pathsep.join(str(ROOT / root) for root in ("core", "gateway", "models", "services"))

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "foveate.gateway.cli", *arguments], check=True, capture_output=True,
            text=True, timeout=TIMEOUT_S, env=environment(tmp_path) | {"PYTHONPATH": roots},
        ).stdout  # fmt: skip

    answer = json.loads(run("predict", str(FOX), "--model", name, "--json"))
    assert (answer["model"], answer["plan"]) == ("colour", "colour@224/fp32")
    out = tmp_path / "colour.json"
    run(
        "profile",
        name,
        "--data",
        str(EXAMPLES / "drawn"),
        "--rounds",
        "1",
        "--batches",
        "1,2",
        "--out",
        str(out),
    )
    profile = Profile.read(out.read_text(), str(out))
    assert {m.plan for m in profile.measurements} == {"full", "colour@128", "colour@64"}
    assert not profile.data.labelled


def test_an_object_on_ray(tmp_path: Path) -> None:
    """Ray pickles the object; its module must be importable on the workers."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")
    program = (
        "import foveate.serve\nfrom tests.support.own_models import FirstPixels\n"
        "foveate.serve(FirstPixels(), cluster='ray', replica_cpus=0.1, gateway_cpus=0.1)\n"
    )
    with example(tmp_path, sys.executable, "-c", program) as client:
        answer = classify(client, FOX)
        assert answer.raise_for_status().json()["model"] == "FirstPixels"
        late = classify(client, BICYCLE, **{"x-slo-ms": "0.001"})  # FOX is cached
        assert late.status_code in (429, 504)


def test_the_same_file_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")
    command = (
        sys.executable,
        "-m",
        "foveate.gateway.cli",
        "serve",
        "--model",
        "examples/torch_module.py:Model",
    )
    with example(tmp_path, *command, "--cluster", "ray") as client:
        assert classify(client, FOX).raise_for_status().json()["model"] == "colour"


def test_scikit_learn(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    script, digit = str(EXAMPLES / "sklearn_images.py"), tmp_path / "digit.png"
    with example(tmp_path, sys.executable, script) as client:
        subprocess.run([sys.executable, script, str(digit)], check=True, timeout=TIMEOUT_S)
        answer = classify(client, digit).raise_for_status().json()
        assert answer["predictions"][0]["label"] == "3"


def test_onnx_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'foveate[onnx]'")
    pytest.importorskip("onnx", reason="onnx, which writes the file, is not installed")
    command = (sys.executable, str(EXAMPLES / "onnx_file.py"), str(tmp_path / "colour.onnx"))
    with example(tmp_path, *command) as client:
        answer = classify(client, FOX).raise_for_status().json()
        assert answer["model"] == "colour"
        assert {each["label"] for each in answer["predictions"]} == {"red", "green", "blue"}
        assert [rung["plan"] for rung in client.get("/models/colour/ladder").json()["ladder"]] == [
            "colour@64/fp32", "colour@96/fp32", "colour@128/fp32"
        ]  # fmt: skip


def check_label(client: httpx.Client, path: str) -> None:
    """The contract of the examples with an engine inside."""
    image = BICYCLE.read_bytes()
    answer = client.post(f"{path}deadline_ms=60000&min_quality=1", content=image)
    assert answer.raise_for_status().json()["label"] == "bicycle"
    assert answer.json()["plan"].startswith("vit-t@224")
    late = client.post(f"{path}deadline_ms=0.01", content=image)
    assert late.status_code in (429, 504)
    assert "deadline" in late.json()["detail"]
    assert client.post(f"{path}deadline_ms=60000", content=b"no image").status_code in (415, 422)


def test_fastapi(tmp_path: Path) -> None:
    command = (sys.executable, str(EXAMPLES / "fastapi_app.py"))
    with example(tmp_path, *command, ready="/openapi.json") as client:
        check_label(client, "/label?")


def test_ray_serve(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")
    command = (sys.executable, str(EXAMPLES / "ray_app.py"))
    with example(tmp_path, *command, ready="/-/healthz") as client:
        check_label(client, "/?")


def snippets() -> list[str]:
    """The Python blocks of the README and of the guide that call foveate.serve."""
    texts = [(ROOT / page).read_text() for page in ("README.md", "docs/own-models.md")]
    blocks = [block for text in texts for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    return [block for block in blocks if "foveate.serve(" in block]


def test_your_own_model_takes_ten_lines() -> None:
    counts = [sum(bool(line.strip()) for line in block.splitlines()) for block in snippets()]
    assert counts
    assert min(counts) <= MAX_LINES


def test_the_snippet_runs(tmp_path: Path) -> None:
    """With a network of the name that it imports."""
    (tmp_path / "my_net.py").write_text(
        "import torch\n\n\ndef Net():\n    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), "
        "torch.nn.Flatten(), torch.nn.Linear(3, 2))\n"
    )
    block = next(b for b in snippets() if sum(bool(line.strip()) for line in b.splitlines()) <= MAX_LINES)
    (tmp_path / "mine.py").write_text(block)
    with example(tmp_path, sys.executable, str(tmp_path / "mine.py")) as client:
        answer = classify(client, FOX).raise_for_status().json()
        assert {each["label"] for each in answer["predictions"]} == {"cat", "dog"}
