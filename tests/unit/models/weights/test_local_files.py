"""Weights by path: which file of a folder is read, and formats that are refused with the fix."""

import json
from pathlib import Path

import pytest

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models.weights import hub
from foveate.models.weights.local_files import (
    canonical_name,
    check_no_options,
    is_local,
    runs_in_transformers,
    weights_path,
)
from tests.support.described import TIMM, write_described

pytestmark = pytest.mark.usefixtures("one_thread")


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (("mine.safetensors",), "mine.safetensors"),
        (("mine.safetensors", "mine.stitches.safetensors", "mine.clicks.safetensors"), "mine.safetensors"),
        (("model.safetensors", "other.safetensors"), "model.safetensors"),
        (("model.safetensors", "pytorch_model.bin"), "model.safetensors"),
        (("model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"), "model.safetensors"),
        (("pytorch_model.bin", "other.pth"), "pytorch_model.bin"),
        (("net.pth.tar", "training_args.bin", "optimizer.pt", "rng_state.pth"), "net.pth.tar"),
        (("net.safetensors.index.json", "net-1.safetensors", "net-2.safetensors"), "net.safetensors"),
    ],
)
def test_file_of_a_folder(tmp_path: Path, files: tuple[str, ...], chosen: str) -> None:
    folder = touch(tmp_path / "a", *files)
    assert is_local(str(folder))
    assert weights_path(str(folder)) == folder / chosen
    assert canonical_name(str(folder)) == canonical_name(str(folder / chosen)) == str(folder / chosen)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            ("b.safetensors", "a.safetensors"),
            r"holds 2 weights files, a\.safetensors, b\.safetensors: name one",
        ),
        (
            ("1.safetensors", "2.safetensors", "3.safetensors", "4.safetensors"),
            r"3\.safetensors, \.\.\.: name",
        ),
        (("b.pth", "a.ckpt"), r"holds 2 weights files, a\.ckpt, b\.pth: name one"),
        (("pytorch_model.bin.index.json", "pytorch_model-1-of-1.bin"), r"holds shards of torch\.save, which"),
        (("readme.md", "pytorch_model.bin"), r"pytorch_model\.bin is empty"),
        (
            ("model.npz",),
            r"model\.npz cannot be loaded: weights are read from \.safetensors files, and from",
        ),
        (("model.onnx",), r"model\.onnx is a model of its own, .*: serve it with --model .*model\.onnx$"),
        ((), r"there is no \.safetensors file in"),
    ],
)
def test_folders_without_one_weights_file_are_refused(
    tmp_path: Path, files: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(SetupError, match=sentence):
        hub.load(str(touch(tmp_path / "a", *files)))


def test_names_that_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("vit-t", "vit_tiny_patch16_224", "org/name", "hf-hub:timm/a", "random:a"):
        assert not is_local(name)
        assert canonical_name(name) == name
    # A folder of the name of a shipped model, and one without weights, do not hide the models.
    write_described(tmp_path / "vit-t", TIMM)
    (tmp_path / "vit_tiny_patch16_224").mkdir()
    assert not is_local("vit-t")
    assert not is_local("vit_tiny_patch16_224")
    assert is_local("./vit-t")


def test_models_that_transformers_runs(tmp_path: Path) -> None:
    folder = write_described(tmp_path / "a", {"model_type": "segformer", "architectures": ["Segformer"]})
    assert runs_in_transformers(str(folder))
    assert runs_in_transformers(str(folder / "model.safetensors"))
    assert runs_in_transformers(str(folder / "pytorch_model.bin"))
    assert not runs_in_transformers(str(folder / "other.safetensors"))
    for table in (TIMM, {"model_type": "vit"}, {"heads": 3}, TIMM | {"model_type": "timm_wrapper"}):
        (folder / "config.json").write_text(json.dumps(table))
        assert not runs_in_transformers(str(folder))
    (folder / "config.json").write_text("{")
    assert not runs_in_transformers(str(folder))


@pytest.mark.parametrize("name", ["vit-t", "random:vit_tiny_patch16_224"])
def test_options_of_models_with_a_configuration_are_refused(name: str) -> None:
    with pytest.raises(SetupError, match=f"heads, eps cannot be set for {name}, which has a configuration"):
        hub.load(name, options=CheckpointOptions(heads=3, eps=1e-6))
    check_no_options(name, NOTHING_STATED)


def test_a_broken_configuration_is_named_beside_missing_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": ')
    with pytest.raises(SetupError, match=r"of weights; besides, its config.json is not readable"):
        weights_path(str(tmp_path))
