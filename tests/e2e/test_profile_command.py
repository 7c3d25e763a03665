"""`foveate profile` end to end: on a user's checkpoint, interrupted, resumed, and then used by `predict`."""

import json
import signal
import subprocess
import time
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint, save
from tests.e2e import serving
from tests.e2e.serving import FOVEATE, TIMEOUT_S

LABELS = ("cat", "dog", "newt")
FEW = ("--plans", "evit:0.5,32", "--rounds", "2", "--precision", "fp32", "--threads", "1")


def environment(home: Path) -> dict[str, str]:
    """The environment without exported FOVEATE_ settings, for a wide terminal."""
    own = {"XDG_DATA_HOME": str(home / "data"), "COLUMNS": "200", "OMP_WAIT_POLICY": "PASSIVE"}
    return serving.environment(home / "cache") | own


def run(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [FOVEATE, *map(str, arguments)]
    return subprocess.run(
        words, env=environment(home), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def accept_interrupts() -> None:
    """A background process of a shell ignores SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A random model of three classes that answers different images differently."""
    config = ViTConfig(image_size=64, width=24, depth=4, heads=2, classes=len(LABELS))
    model, generator = ElasticViT(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    path = tmp_path / "mine.safetensors"
    save(path, Checkpoint("mine", config, LABELS, model=model))
    return path


def image_folders(folder: Path, *classes: str, count: int = 8) -> Path:
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            patches = random.integers(0, 256, (5, 4, 3), np.uint8).repeat(20, 0).repeat(20, 1)
            Image.fromarray(patches).save(folder / name / f"{number}.png")
    return folder


def test_a_checkpoint_with_a_labelled_folder_gets_a_ladder(weights: Path, tmp_path: Path) -> None:
    folder = image_folders(tmp_path / "animals", "CAT", "1", "newt")
    (folder / "CAT" / "notes.txt").write_text("no image")
    searched = ("--plans", "evit:0.5,32,diffrate:0.7", "--diffrate", "0.7")
    done = run(tmp_path, "profile", weights, "--data", folder, *FEW, *searched)
    assert done.returncode == 0, done.stderr
    profile = json.loads((tmp_path / "mine.profile.json").read_text())
    assert profile["data"] == {"name": "animals", "pictures": 24, "labelled": True}
    assert profile["setting"]["threads"] == 1
    plans = {m["plan"] for m in profile["measurements"] if "content" not in m["plan"]}
    assert plans == {"full", "evit:0.5", "mine@32", "diffrate:0.7"}
    assert len(profile["schedules"]["0.7"]) == 4
    full = next(m for m in profile["measurements"] if m["plan"] == "full")
    assert full["quality"] == 1
    assert 0 < full["accuracy"] < 1
    assert set(full["latency_s"]) == {"1", "4", "8", "32"}
    assert "1 file(s) are left out: media cannot be decoded, as in notes.txt" in done.stderr
    assert "speed-up" in done.stdout
    for kind in ("png", "svg"):
        assert (tmp_path / f"mine.profile.{kind}").stat().st_size > 5000
    assert not list(tmp_path.glob("*.partial"))

    served = run(tmp_path, "predict", folder / "newt" / "0.png", "-m", weights, "--precision", "bf16")
    assert served.returncode == 0, served.stderr
    assert "in fp32, not" in " ".join(served.stderr.split())


def test_an_interrupted_command_prints_how_to_resume_and_resumes(weights: Path, tmp_path: Path) -> None:
    folder = image_folders(tmp_path / "unlabelled", ".", count=16)
    target = tmp_path / "out" / "p.json"
    partial = target.with_name("p.json.partial")
    plans = (
        "--plans",
        "evit:0.9,evit:0.8,evit:0.7,evit:0.6,evit:0.5,evit:0.4,32",
        "--rounds",
        "25",
        "--batches",
        "1,2",
    )
    words: list[str | Path] = ["profile", weights, "--data", folder, *FEW, *plans, "--out", target]
    command = [FOVEATE, *map(str, words)]
    with subprocess.Popen(
        command, env=environment(tmp_path), stderr=PIPE, text=True, preexec_fn=accept_interrupts
    ) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            if partial.exists() and json.loads(partial.read_text())["kept"]:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.005)
        errors = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert not target.exists()

    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    profile = json.loads(target.read_text())
    assert profile["data"] == {"name": "unlabelled", "pictures": 16, "labelled": False}
    assert {m["accuracy"] for m in profile["measurements"]} == {None}
    assert not partial.exists()


def test_without_images_of_its_classes_the_error_names_the_option(weights: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "profile", weights, "--precision", "fp32")
    assert done.returncode == 2
    assert "pass --data DIR" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.glob("mine*")] == ["mine.safetensors"]
