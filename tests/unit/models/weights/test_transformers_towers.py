"""Vision towers of transformers in the trunk, with transformers' own outputs."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import BadPlan, SetupError
from foveate.core.outcome import Result
from foveate.models import reduction
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ResolvedPlan
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint, save
from foveate.models.weights.not_elastic import NotElastic
from tests.support.towers import CLASSIFIERS, LABELS, PREPROCESSOR, SIDE, TOWERS, output, saved

pytestmark = pytest.mark.usefixtures("one_thread")

every_kind = pytest.mark.parametrize("kind", TOWERS)


def images(side: int = SIDE) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def answers(checkpoint: Checkpoint, batch: Tensor, reducer: str = "none") -> Tensor:
    model = checkpoint.model
    with torch.inference_mode():
        resolved = ResolvedPlan(reduction.create(reducer, model), checkpoint.config.depth)
        logits: Tensor = model(batch, resolved).logits
    return logits


def disagreement(checkpoint: Checkpoint, model: Any, side: int = SIDE) -> float:
    expected = output(model, images(side))
    ours = answers(checkpoint, images(side))
    assert ours.shape == expected.shape
    assert expected.std(0).max() > 1e-3  # the images have different answers
    return float((ours - expected).abs().max() / expected.abs().max().clamp(min=1))


@every_kind
def test_outputs_are_those_of_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    model = TOWERS[kind]()
    caplog.set_level(logging.WARNING)
    loaded = hub.load(str(saved(tmp_path / "animals", model)))
    assert disagreement(loaded, model) < 1e-4
    assert loaded.config.classes == (len(LABELS) if kind in CLASSIFIERS else 0)
    assert loaded.labels == (LABELS if kind in CLASSIFIERS else ())
    assert loaded.description == f"{kind} of transformers"
    assert not [record for record in caplog.records if record.name.startswith("foveate")]


@pytest.mark.parametrize("kind", ["Dinov2ForImageClassification", "Dinov2WithRegistersModel"])
@pytest.mark.parametrize("side", [32, 96])
def test_positions_are_interpolated_to_the_preprocessors_size(tmp_path: Path, kind: str, side: int) -> None:
    """DINOv2 takes images of another size than that of its position embeddings, and resizes these itself."""
    model = TOWERS[kind]()
    cropped = PREPROCESSOR | {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": side + 16},
        "crop_size": {"height": side, "width": side},
    }
    loaded = hub.load(str(saved(tmp_path / "a", model, cropped)))
    assert (loaded.config.image_size, loaded.input.crop_mode) == (side, "center")
    assert loaded.input.crop_pct == pytest.approx(side / (side + 16))
    assert disagreement(loaded, model, side) < 1e-4
    own = hub.load(str(tmp_path / "a"), options=CheckpointOptions(image_size=SIDE))
    assert disagreement(own, model) < 1e-4


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Dinov2Model", {"use_swiglu_ffn": True}),
        ("Dinov2WithRegistersForImageClassification", {"use_swiglu_ffn": True, "num_register_tokens": 2}),
        ("Dinov2WithRegistersModel", {"num_register_tokens": 0, "image_size": 24}),
        ("Dinov2WithRegistersModel", {"image_size": 24}),
        ("Dinov2Model", {"qkv_bias": False, "use_mask_token": False, "mlp_ratio": 3}),
        ("ViTModel", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "qkv_bias": False}),
        ("ViTForImageClassification", {"id2label": {}, "label2id": {}, "num_labels": 0}),
        ("CLIPModel", {"hidden_act": "gelu", "layer_norm_eps": 1e-3}),
        ("CLIPVisionModel", {"patch_size": 32}),
        ("SiglipVisionModel", {"hidden_act": "gelu"}),
    ],
)
def test_variations(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = TOWERS[kind](**changes)
    loaded = hub.load(str(saved(tmp_path / "a", model, None)))
    assert disagreement(loaded, model, changes.get("image_size", SIDE)) < 1e-4


@every_kind
def test_names_of_the_modules_and_half_precision(tmp_path: Path, kind: str) -> None:
    """transformers 5 names its modules otherwise than the files of version 4; both are read."""
    model = TOWERS[kind]()
    folder = saved(tmp_path / "a", model)
    half = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(half, folder / "model.safetensors")
    loaded = hub.load(str(folder))
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    assert disagreement(loaded, model.half().float()) < 1e-4


@pytest.mark.parametrize("kind", ["ViTForImageClassification", "CLIPModel", "ViTMSNForImageClassification"])
def test_shards_are_joined(tmp_path: Path, kind: str) -> None:
    model = TOWERS[kind]()
    folder = saved(tmp_path / "a", model, max_shard_size="40KB")
    assert not (folder / "model.safetensors").exists()
    assert disagreement(hub.load(str(folder)), model) < 1e-4


def test_files_of_old_versions(tmp_path: Path) -> None:
    """They number the positions in a buffer of whole numbers, and hold the vision part's values twice."""
    model = TOWERS["CLIPModel"](hidden_act="gelu")
    folder = saved(tmp_path / "a", model)
    state = load_file(folder / "model.safetensors")
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    save_file(state | positions, folder / "model.safetensors")
    table = json.loads((folder / "config.json").read_text())
    part = table["vision_config"]
    table |= {"vision_config_dict": part, "vision_config": {**part, "hidden_act": "relu", "patch_size": 8}}
    (folder / "config.json").write_text(json.dumps(table))
    assert disagreement(hub.load(str(folder)), model) < 1e-4


def test_values_that_a_configuration_leaves_out(tmp_path: Path) -> None:
    """They are transformers' defaults of the model_type."""
    for kind, left_out in (
        ("SiglipVisionModel", ("hidden_act", "layer_norm_eps", "vision_use_head")),
        ("CLIPVisionModel", ("hidden_act", "layer_norm_eps")),
        ("ViTModel", ("hidden_act", "layer_norm_eps", "patch_size", "qkv_bias")),
        ("ViTMSNModel", ("layer_norm_eps",)),
        ("Dinov2Model", ("layer_norm_eps", "mlp_ratio", "use_swiglu_ffn")),
        ("Dinov2WithRegistersModel", ("num_register_tokens",)),
    ):
        model = TOWERS[kind]()
        folder = saved(tmp_path / kind, model)
        table = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: v for k, v in table.items() if k not in left_out}))
        assert disagreement(hub.load(str(folder)), model) < 1e-4, kind


def test_the_classes_of_transformers_get_its_generic_names(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", TOWERS["ViTForImageClassification"]())
    table = json.loads((folder / "config.json").read_text())
    del table["id2label"]
    (folder / "config.json").write_text(json.dumps(table))
    assert hub.load(str(folder)).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    mine = CheckpointOptions(labels=("a", "b", "c"))
    assert hub.load(str(folder), options=mine).labels == ("a", "b", "c")


@every_kind
@pytest.mark.parametrize("plan", ["evit:0.5", "tome:4", "diffrate:0.8"])
def test_plans_with_fewer_tokens_run(tmp_path: Path, kind: str, plan: str) -> None:
    runner = TorchRunner(hub.load(str(saved(tmp_path / "a", TOWERS[kind]()))))
    fewer = runner.card.plan(plan)
    if kind.startswith(("Siglip", "IJepa")) and plan != "tome:4":
        with pytest.raises(BadPlan, match="class token"):
            runner.check(fewer)
        return
    batch = torch.randint(0, 256, (3, SIDE, SIDE, 3), dtype=torch.uint8)
    full, reduced = runner.run(batch, runner.full), runner.run(batch, fewer)
    for one, other in zip(full, reduced, strict=True):
        assert isinstance(one, Result)
        assert isinstance(other, Result)
        assert other.tokens < one.tokens
        assert other.gflops < one.gflops
        assert other.scores.shape == one.scores.shape
        assert not np.array_equal(other.scores, one.scores)


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        (
            "ViTModel",
            {"architectures": ["ViTForMaskedImageModeling"]},
            "describes a ViTForMaskedImageModeling",
        ),
        ("ViTModel", {"architectures": ["DeiTModel"]}, "describes a DeiTModel of model_type vit"),
        ("ViTModel", {"architectures": None}, "describes a vit of model_type vit"),
        ("ViTModel", {"hidden_act": "relu"}, "hidden_act 'relu' is not one of gelu"),
        ("ViTModel", {"num_channels": 1}, "takes 1 channels"),
        ("ViTModel", {"image_size": [64, 96]}, r"takes images of \[64, 96\], and only square"),
        ("ViTModel", {"patch_size": [8, 16]}, r"takes patches of \[8, 16\], and only square"),
        ("ViTModel", {"head_dim": 8}, "3 heads of 8 features do not make up a width of 48"),
        ("SiglipVisionModel", {"vision_use_head": False}, "no embedding of an image"),
        (
            "ViTForImageClassification",
            {"problem_type": "multi_label_classification"},
            "multi_label_classification",
        ),
        ("Dinov2ForImageClassification", {"problem_type": "regression"}, "regression"),
    ],
)
def test_what_the_trunk_does_not_represent(
    tmp_path: Path, kind: str, changes: dict[str, Any], sentence: str
) -> None:
    folder = saved(tmp_path / "a", TOWERS[kind]())
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | changes))
    with pytest.raises(NotElastic, match=sentence) as refused:
        hub.load(str(folder))
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": "wide"}, "hidden_size is 'wide', which is no whole number above 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": 4}, "it says depth 4, and the weights show 3"),
        ({"intermediate_size": 81}, r"blocks\.0\.mlp\.fc1\.bias is \(80,\) where \(81,\) fits"),
        ({"image_size": 96}, r"pos_embed is \(1, 17, 48\) where \(1, 37, 48\) fits"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
        ({"patch_size": {"height": 16}}, "patch_size is {'height': 16}"),
        (
            {"vision_config": 3, "model_type": "clip", "architectures": ["CLIPModel"]},
            "vision_config is no table",
        ),
    ],
)
def test_configurations_of_other_weights(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    folder = saved(tmp_path / "a", TOWERS["ViTForImageClassification"](), None)
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | changes))
    with pytest.raises(SetupError, match=sentence):
        hub.load(str(folder))


def test_weights_without_the_classifier_that_the_configuration_names(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", TOWERS["ViTModel"]())
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | {"architectures": ["ViTForImageClassification"]}))
    state = {n: v for n, v in load_file(folder / "model.safetensors").items() if not n.startswith("pooler")}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(SetupError, match="the weights have no classifier"):
        hub.load(str(folder))


@pytest.mark.parametrize("kind", ["CLIPModel", "Dinov2WithRegistersForImageClassification", "SiglipModel"])
def test_converted_checkpoints_can_be_saved(tmp_path: Path, kind: str) -> None:
    model = TOWERS[kind]()
    loaded = hub.load(str(saved(tmp_path / "a", model)))
    save(tmp_path / "mine.safetensors", loaded)
    again = hub.load(str(tmp_path / "mine.safetensors"))
    assert again.config == loaded.config
    assert disagreement(again, model) < 1e-4
