"""`foveate profile` as people run it: on their own checkpoint, interrupted, gone on, and then served from."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from foveate.core.errors import FoveateError
from foveate.core.profile import Data, Measurement, Profile, Setting
from foveate.gateway.cli.profile import ProfileOptions, _progress, profile, show
from foveate.models.layers.config import ViTConfig
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint, read, save

FOVEATE = str(Path(sys.executable).with_name("foveate"))
PATIENCE_S = 120
LABELS = ("cat", "dog", "newt")
FEW = ("--plans", "evit:0.5,32", "--rounds", "2", "--precision", "fp32", "--threads", "1")


def environment(home: Path) -> dict[str, str]:
    """Ours, without settings somebody may have exported, and nothing of the user's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOVEATE_")}
    own = {"XDG_CACHE_HOME": str(home / "cache"), "XDG_DATA_HOME": str(home / "data"), "COLUMNS": "200"}
    return kept | own | {"OMP_WAIT_POLICY": "PASSIVE"}


def run(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [FOVEATE, *map(str, arguments)]
    return subprocess.run(
        words, env=environment(home), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def heed_interrupts() -> None:
    """Whoever runs in the background of a shell ignores SIGINT, and what it starts would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A random model of three classes whose answers differ between pictures."""
    geometry = ViTConfig(image_size=64, width=24, depth=4, heads=2, classes=len(LABELS))
    model, generator = ElasticViT(geometry).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    path = tmp_path / "mine.safetensors"
    save(path, Checkpoint("mine", geometry, LABELS, model=model))
    return path


def pictures(folder: Path, *classes: str, count: int = 8) -> Path:
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            patches = random.integers(0, 256, (5, 4, 3), np.uint8).repeat(20, 0).repeat(20, 1)
            Image.fromarray(patches).save(folder / name / f"{number}.png")
    return folder


def test_a_checkpoint_with_a_labelled_folder_gets_a_ladder_that_is_served(
    weights: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "animals", "CAT", "1", "newt")
    (folder / "CAT" / "notes.txt").write_text("no picture")
    searched = ("--plans", "evit:0.5,32,diffrate:0.7", "--diffrate", "0.7")
    done = run(tmp_path, "profile", weights, "--data", folder, *FEW, *searched)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "mine.profile.json").read_text())
    assert found["data"] == {"name": "animals", "pictures": 24, "labelled": True}
    assert found["setting"]["threads"] == 1
    plans = {m["plan"] for m in found["measurements"] if "content" not in m["plan"]}
    assert plans == {"full", "evit:0.5", "mine@32", "diffrate:0.7"}
    assert len(found["schedules"]["0.7"]) == 4
    full = next(m for m in found["measurements"] if m["plan"] == "full")
    assert full["quality"] == 1
    assert 0 < full["accuracy"] < 1
    assert set(full["latency_s"]) == {"1", "4", "8", "32"}
    assert "1 file(s) cannot be read as pictures" in done.stderr
    assert "speed-up" in done.stdout
    for kind in ("png", "svg"):
        assert (tmp_path / f"mine.profile.{kind}").stat().st_size > 5000
    assert not list(tmp_path.glob("*.partial"))

    served = run(tmp_path, "predict", folder / "newt" / "0.png", "-m", weights, "--precision", "bf16")
    assert served.returncode == 0, served.stderr
    assert "in fp32, not" in " ".join(served.stderr.split())


def test_interrupted_it_says_how_to_go_on_and_does(weights: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "unlabelled", ".", count=16)
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
        command, env=environment(tmp_path), stderr=PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and process.poll() is None:
            if partial.exists() and json.loads(partial.read_text())["kept"]:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.005)
        said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert not target.exists()

    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    found = json.loads(target.read_text())
    assert found["data"] == {"name": "unlabelled", "pictures": 16, "labelled": False}
    assert {m["accuracy"] for m in found["measurements"]} == {None}
    assert not partial.exists()


def test_without_pictures_of_its_classes_it_says_what_to_pass(weights: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "profile", weights, "--precision", "fp32")
    assert done.returncode == 2
    assert "pass --data DIR" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.glob("mine*")] == ["mine.safetensors"]


def test_what_cannot_be_done_is_refused_in_one_sentence(weights: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "animals", "cat", "fish", count=1)
    cats, complaints = folder / "cat", Console(stderr=True)
    loaded = UnprofiledModel(TorchRunner(read(weights)), "abc", {})
    for asked, sentence in (
        (ProfileOptions("mine", data=folder), "fish stands for no class"),
        (ProfileOptions("mine", data=tmp_path / "nowhere"), "there is no folder"),
        (ProfileOptions("mine", data=cats, plans="warp:9"), "there is no token reducer 'warp'"),
        (
            ProfileOptions("mine", data=cats, plans="warp:9", diffrate="0.7"),
            "there is no token reducer 'warp'",
        ),
        (ProfileOptions("mine", data=cats, diffrate="0.7,x"), "shares of the full cost are numbers"),
        (ProfileOptions("mine", data=cats, diffrate="0.01"), "below .* of its full compute"),
        (ProfileOptions("mine", data=cats, batch_sizes="1,0"), "batch sizes are different numbers from 1"),
        (ProfileOptions("mine", data=cats, batch_sizes="4,x"), "batch sizes are different numbers from 1"),
        (ProfileOptions("mine", data=cats, batch_sizes="4,4"), "batch sizes are different numbers from 1"),
    ):
        with pytest.raises(FoveateError, match=sentence) as refused:
            profile(asked, loaded, 10**6, complaints)
        assert "\n" not in refused.value.detail


def test_no_thread_of_its_own_draws_the_bars() -> None:
    said, threads = StringIO(), threading.active_count()
    with _progress(Console(file=said, force_terminal=True, width=100)) as watch:
        watch("latency", "latency of 2 plans", 1, 4)
        assert threading.active_count() == threads
        assert "latency of 2 plans" in said.getvalue()
        watch("latency", "all done", 4, 4)
    assert "all done" in said.getvalue(), "what came last is drawn in the end"


def test_without_matplotlib_the_profile_is_shown_and_a_sentence_says_what_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    where = Setting("a chip", 2, "fp32", "2.13", "3.11", "0.1", "2026-01-01")
    full = Measurement("full", 1.0, 0.9, 1.0, 5, {1: 0.1, 8: 0.4}, rung=True)
    half = Measurement("evit:0.5", 0.98, 0.88, 0.6, 3, {1: 0.08, 8: 0.2}, rung=True)
    found = Profile("mine", "0", Data("animals", 9, labelled=True), 0, where, (half, full))
    show(Console(width=200), found, tmp_path / "p.json")
    said = capsys.readouterr().out
    assert "pip install 'foveate[profile]'" in said
    assert [line.split() for line in said.splitlines()[1:3]] == [
        ["evit:0.5", "0.980", "88.0%", "0.600", "80.00", "200.00", "2.00x"],
        ["full", "1.000", "90.0%", "1.000", "100.00", "400.00", "1.00x"],
    ]
    assert not list(tmp_path.iterdir())
