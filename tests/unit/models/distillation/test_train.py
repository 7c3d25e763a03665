"""Training what a checkpoint lacks, on a real trunk: agreement, resuming, and what is refused."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import SetupError
from foveate.models.distillation import fit as fitting
from foveate.models.distillation.fit import FitProgress
from foveate.models.distillation.train import HeadTrainingJob, partial_training, plan_heads, train_heads
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.loading.profile_store import weights_digest
from foveate.models.profiling import dataset
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint, attach
from foveate.models.weights.trained_heads import read_heads
from foveate.models.zoo.heldout import heldout
from tests.support.measuring import CONFIG, decode, noise_dataset, quiet, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 96


@pytest.fixture(scope="module")
def scenes() -> DecodedDataset:
    """Shipped scenes without labels, scaled down so that the test is short."""
    chosen = replace(dataset.shipped_scenes(heldout()).sample(320, 0), targets=None, masks=None)

    def small(data: bytes) -> Any:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE)))

    return DecodedDataset(chosen, small, quiet)


def trunk() -> Checkpoint:
    """The trunk of vit-xs without exits and gates."""
    shipped = hub.load("vit-xs", image_size=SIDE)
    state = {
        name: value
        for name, value in shipped.model.state_dict().items()
        if not name.startswith(("exit_heads.", "gates."))
    }
    return attach(replace(shipped, exits=(), gates=()), state, "vit-xs")


def noise(count: int = 60) -> DecodedDataset:
    items = tuple(str(i).encode() for i in range(count))
    return DecodedDataset(replace(noise_dataset(), items=items), decode, quiet)


def job_of(checkpoint: Checkpoint, images: DecodedDataset, steps: int = 3) -> HeadTrainingJob:
    return HeadTrainingJob(checkpoint, weights_digest(checkpoint), images, 1e6, max_steps=steps)


def test_exits_and_gates_of_a_real_trunk_beat_their_baselines(tmp_path: Path, scenes: DecodedDataset) -> None:
    checkpoint, target = trunk(), tmp_path / "vit-xs.exits.safetensors"
    rows = {row.name: row for row in train_heads(job_of(checkpoint, scenes, 30), target)}
    assert [name for name in rows if name.startswith("exit")] == [
        f"exit after block {after}" for after in (3, 4, 5, 7)
    ]
    assert rows["exit after block 7"].agreement > 0.6 > 3 * rows["exit after block 7"].baseline
    assert rows["exit after block 5"].agreement > rows["exit after block 5"].baseline
    gates = rows["gates at iared:0.5"]
    assert gates.agreement > gates.baseline and gates.baseline_name == "random:0.5"
    served = read_heads(target, trunk(), weights_digest(trunk()))
    assert [spec.after for spec in served.exits] == [3, 4, 5, 7] and served.gates == (2, 4, 6)
    assert not partial_training(target).exists()


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAVE_INTERVAL_S", -1.0)
    target, steps = tmp_path / "tiny.exits.safetensors", list[tuple[str, int]]()

    def interrupt(part: str, progress: FitProgress) -> None:
        if (part, progress.step) == ("token gates", 2):
            raise KeyboardInterrupt

    def record(part: str, progress: FitProgress) -> None:
        steps.append((part, progress.step))

    with pytest.raises(KeyboardInterrupt):
        train_heads(job_of(tiny(), noise()), target, interrupt)
    assert not target.exists() and partial_training(target).exists()
    train_heads(job_of(tiny(), noise()), target, record)
    assert steps == [("token gates", 2), ("token gates", 3)]
    assert target.exists() and not partial_training(target).exists()


def dense() -> Checkpoint:
    spec = DenseSpec(classes=6, width=8, fine=8)
    torch.manual_seed(3)
    model = ElasticViT(CONFIG, dense=spec).eval()
    model.load_state_dict(tiny().model.state_dict(), strict=False)
    assert isinstance(model.dense, DenseHead)
    return Checkpoint("seg", CONFIG, dense=spec, model=model)


def test_a_dense_model_gets_patch_readers_and_answers_as_before_at_full(tmp_path: Path) -> None:
    target = tmp_path / "seg.exits.safetensors"
    rows = train_heads(job_of(dense(), noise(), 20), target)
    assert [row.name for row in rows] == [f"patches after block {n}" for n in (1, 2, 3)]
    trained = read_heads(target, dense(), weights_digest(dense())).model.state_dict()
    before = dense().model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], trained[name])}
    readers = {
        name for name in before if name.startswith(("dense.readers.0", "dense.readers.1", "dense.readers.2"))
    }
    assert changed and changed <= readers


def test_too_few_images_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        SetupError, match=r"^12 readable image\(s\) in noise are too few to train on: give at l"
    ):
        train_heads(job_of(tiny(), noise(12)), tmp_path / "x")


def test_a_checkpoint_that_lacks_nothing_or_has_no_classes_is_refused() -> None:
    with pytest.raises(SetupError, match="has exit heads and gates already"):
        plan_heads(hub.load("vit-t"))
    with pytest.raises(SetupError, match="has no classifier"):
        plan_heads(tiny(config=replace(CONFIG, classes=0)))
    with pytest.raises(SetupError, match="classifies clips"):
        plan_heads(hub.load("vit-t-clip"))
    planned = plan_heads(hub.load("vit-xs"))
    assert planned.exits and not planned.gates, "the gates that it has stay"
    plain = plan_heads(tiny(config=replace(CONFIG, class_token=False, pool="avg")))
    assert plain.exits and not plain.gates, "gates need a class token"


def test_pictures_are_the_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="there is no folder"):
        dataset.image_folder(tmp_path / "none")
    with pytest.raises(SetupError, match="there is no image in"):
        dataset.image_folder(tmp_path)
    (tmp_path / "any class").mkdir()
    (tmp_path / "any class" / "1.jpg").write_bytes(b"")
    assert isinstance(dataset.image_folder(tmp_path), Dataset)
