"""Checkpoints of transformers by name: what is loaded, and one sentence for each refusal."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.core.errors import SetupError
from foveate.models import huggingface
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.transformers_models import TransformersLoader
from tests.support import pretrained
from tests.support.pretrained import (
    LABELS,
    SIDE,
    load_runner,
    saved,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_card_of_a_checkpoint(tmp_path: Path) -> None:
    path = saved(tmp_path / "seg.former b0", pretrained.segformer())
    (path / "README.md").write_text(
        "---\ntags:\n- vision\nlicense: apache-2.0\n---\n# A model\nlicense: no\n"
    )
    card = load_runner(path).card
    assert (card.name, card.task, card.labels, card.frames) == ("seg.former-b0", "segment", LABELS, 0)
    assert (card.licence, card.full.image_size, len(card.ladder)) == ("apache-2.0", SIDE, 1)
    assert card.parameters == sum(p.numel() for p in pretrained.segformer().parameters())


def write_changed(path: Path, file: str, **changes: Any) -> Path:
    """The checkpoint with another entry in one of its tables; None takes one out."""
    table = json.loads((path / file).read_text()) | changes
    (path / file).write_text(json.dumps({key: value for key, value in table.items() if value is not None}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SetupError) as refused:
        load_runner(path)
    assert "\n" not in refused.value.detail
    return refused.value.detail


def test_checkpoints_that_cannot_be_served_are_refused(tmp_path: Path) -> None:
    def one(name: str) -> Path:
        return saved(tmp_path / name, pretrained.segformer())

    assert "no config.json" in refusal(tmp_path)
    pickled = one("pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(pretrained.segformer().state_dict(), pickled / "pytorch_model.bin")
    assert "no .safetensors" in refusal(pickled)
    code = {"auto_map": {"AutoConfig": "configuration_net.NetConfig"}, "model_type": "net"}
    own_code = write_changed(one("code"), "config.json", **code)
    assert "code of repositories is never run: write a class" in refusal(own_code)
    (own_code / "model.safetensors").unlink()
    assert "code of repositories is never run: write a class" in refusal(own_code)
    torn = one("torn")
    (torn / "model.safetensors").write_bytes(b"not a tensor")
    assert "the weights of" in refusal(torn)
    config, pixels = "config.json", "preprocessor_config.json"
    unknown = write_changed(one("a"), config, model_type="unknown")
    assert "is not one that transformers" in refusal(unknown)
    words = write_changed(one("words"), config, hidden_sizes="many")
    assert "is not one that transformers" in refusal(words)
    assert "is a 5, which is not served" in refusal(write_changed(one("five"), config, architectures=5))
    depth = write_changed(one("b"), config, architectures=["SegformerForDepthEstimation"])
    assert "of transformers these are served: image classifiers" in refusal(depth)
    assert "number its labels" in refusal(write_changed(one("c"), config, id2label={"0": "a", "2": "b"}))
    (one("d") / config).write_text("{")
    assert "configuration of" in refusal(tmp_path / "d")
    nine = {str(index): f"class {index}" for index in range(9)}
    assert "do not fit its config.json: decode_head.classifier." in refusal(
        write_changed(one("other-classes"), config, id2label=nine, label2id=None)
    )
    control = {str(index): f"class\r{index}" for index in range(5)}
    assert "holds a control character" in refusal(
        write_changed(one("control"), config, id2label=control, label2id=None)
    )
    many = {str(index): f"class {index}" for index in range(256)}
    assert "256 classes" in refusal(write_changed(one("e"), config, id2label=many, label2id=None))
    assert "does not say how large" in refusal(write_changed(one("f"), pixels, size=None))
    assert "a size that is not served" in refusal(
        write_changed(one("g"), pixels, size={"height": "x", "width": 3})
    )
    assert "image_std" in refusal(write_changed(one("h"), pixels, image_std=[0, 1, 1]))
    assert "three numbers" in refusal(write_changed(one("i"), pixels, image_mean=[0.5]))
    assert "no factor" in refusal(write_changed(one("j"), pixels, rescale_factor="much"))
    (one("k") / pixels).unlink()
    assert "no preprocessor_config.json" in refusal(tmp_path / "k")
    (one("l") / pixels).write_text("[]")
    assert "is not a table" in refusal(tmp_path / "l")


def test_only_weights_that_answers_depend_on_are_required(tmp_path: Path) -> None:
    path = saved(tmp_path / "dpt", pretrained.dpt())
    state = load_file(path / "model.safetensors")
    unused = [name for name in state if "fusion_stage.layers.0.residual_layer1" in name]
    assert unused
    save_file(
        {n: v for n, v in state.items() if n not in unused}, path / "model.safetensors", {"format": "pt"}
    )
    TransformersLoader().load(str(path), LoadOptions("fp32", "cpu", 1), warm_ladder=False)
    needed = {n: v for n, v in state.items() if not n.startswith("head.")}
    save_file(needed, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SetupError, match=r"gives no valid answer to a blank image: .* not finite"):
        TransformersLoader().load(str(path), LoadOptions("fp32", "cpu", 1), warm_ladder=False)


def test_names_of_transformers_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "m", pretrained.segformer())
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "m", "./m", "nvidia/segformer-b0", "hf:m", "hf:nvidia/segformer-b0"):
        assert huggingface.is_transformers_name(name), name
    (tmp_path / "vit-t").mkdir()
    (tmp_path / "empty").mkdir()
    others = (
        "vit-t", "empty", "vit_tiny_patch16_224", "random:vit_tiny_patch16_224", "hf-hub:timm/vit_x",
        "timm/vit_tiny_patch16_224", "a/b.safetensors", "folder/model.pt",
    )  # fmt: skip
    for name in others:
        assert not huggingface.is_transformers_name(name), name


def test_missing_transformers_is_reported_with_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'foveate[transformers]'" in refusal(tmp_path)


def test_name_that_is_not_on_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = sys.modules["huggingface_hub.constants"]
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match=r"^missing/model cannot be fetched: the hub at [^\n]+$"):
        huggingface.load("missing/model")
