"""Folders that transformers' save_pretrained writes for ViT and DeiT, with transformers' own outputs."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models import reduction
from foveate.models.huggingface import is_transformers_name
from foveate.models.vit.vit import ResolvedPlan
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.checkpoints import LABELS
from tests.support.torchvision_ops import import_transformers

pytestmark = pytest.mark.usefixtures("one_thread")
transformers: Any = import_transformers()
SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "image_size": 64, "id2label": dict(enumerate(LABELS)),
}  # fmt: skip
PREPROCESSOR = {
    "do_resize": True, "size": {"height": 64, "width": 64}, "resample": 3, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


def vit(**changes: Any) -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**{**SHAPE, **changes}))


def deit() -> Any:
    return transformers.DeiTForImageClassification(transformers.DeiTConfig(**SHAPE))


def deit_with_teacher() -> Any:
    return transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**SHAPE))


def saved(folder: Path, module: Any, **preprocessor: Any) -> Path:
    """A folder with a checkpoint of random weights, far from their small initial values."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    module.eval().save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def disagreement(checkpoint: Checkpoint, module: Any) -> float:
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    resolved = ResolvedPlan(reduction.create("none", checkpoint.model), checkpoint.config.depth)
    with torch.inference_mode():
        difference = checkpoint.model(image, resolved).logits - module(image).logits
    return float(difference.abs().max())


@pytest.mark.parametrize(
    "module",
    [
        vit(), vit(hidden_act="quick_gelu", layer_norm_eps=1e-3), vit(hidden_act="gelu_new", qkv_bias=False),
        deit(), deit_with_teacher(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["", "/model.safetensors"])
def test_folder_has_the_outputs_of_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, module: Any, file: str
) -> None:
    folder = saved(tmp_path / "animals", module, **PREPROCESSOR)
    caplog.set_level(logging.WARNING)
    loaded = hub.load(f"{folder}{file}")
    assert not is_transformers_name(f"{folder}{file}")
    assert (loaded.name, loaded.labels, loaded.config.heads) == ("animals", LABELS, 4)
    assert (loaded.mean, loaded.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert loaded.input == InputSpec(1.0, "squash", "bicubic")
    assert not [record for record in caplog.records if record.name.startswith("foveate")]
    assert disagreement(loaded, module) < 1e-4


def test_missing_preprocessor_is_a_guess(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = hub.load(str(saved(tmp_path / "a", vit())))
    assert loaded.config.eps == 1e-12
    assert "guesses, and wrong ones cost accuracy: mean 0.5,0.5,0.5" in caplog.text


def test_preprocessing_in_a_processor(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", vit())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": PREPROCESSOR}))
    assert hub.load(str(folder)).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("config", "preprocessor", "sentence"),
    [
        ({}, {"size": {"height": 96, "width": 96}}, "makes images of 96 pixels, and config.json takes 64"),
        ({}, {"do_flip_channel_order": True}, "channels in the order blue, green, red"),
        ({"hidden_act": "relu"}, {}, "hidden_act 'relu' is not one of gelu, gelu_new"),
        ({"hidden_size": 32}, {}, "it says width 32, and the weights show 64"),
        ({"image_size": [64, 96]}, {}, r"images of \[64, 96\], and only square"),
        ({"id2label": {"0": "cat"}}, {}, "names 1 labels, and the weights have 3 classes"),
        ({"id2label": "names.txt"}, {}, "id2label is the text 'names.txt', and it must be a list"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, {}, "describes a ViTForMaskedImageModeling"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    tmp_path: Path, config: dict[str, Any], preprocessor: dict[str, Any], sentence: str
) -> None:
    folder = saved(tmp_path / "a", vit(), **{**PREPROCESSOR, **preprocessor})
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | config))
    (folder / "names.txt").write_text("\n".join(LABELS))  # no text of transformers' is taken as its path
    with pytest.raises(SetupError, match=sentence):
        hub.load(str(folder))


def test_parameters_of_other_tasks_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", vit(), **PREPROCESSOR)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"vit.pooler.dense.weight": torch.zeros(64, 64)}, folder / "model.safetensors")
    with pytest.raises(SetupError, match=r"pooler\.dense\.weight is \(64, 64\) where nothing fits"):
        hub.load(str(folder))


def test_wrapper_of_timm(tmp_path: Path) -> None:
    """transformers' TimmWrapper writes timm's configuration, and names under `timm_model.`."""
    timm = __import__("timm")
    module = timm.create_model("test_vit", num_classes=3)
    config = {
        "architectures": ["TimmWrapperForImageClassification"], "architecture": "test_vit", "num_classes": 3,
        "model_type": "timm_wrapper", "label_names": list(LABELS),
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 160, 160]},
    }  # fmt: skip
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    state = {f"timm_model.{name}": value for name, value in module.state_dict().items()}
    save_file(state, tmp_path / "a" / "model.safetensors")
    loaded = hub.load(str(tmp_path / "a"))
    assert (loaded.labels, loaded.mean, loaded.config.heads) == (LABELS, (0.1, 0.2, 0.3), 2)
