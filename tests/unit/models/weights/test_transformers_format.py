"""Folders that transformers' save_pretrained writes for ViT and DeiT, with transformers' own outputs."""

import json
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.gateway.media.image import decode_image
from foveate.models import reduction
from foveate.models.huggingface import is_transformers_name
from foveate.models.runners.image import TorchRunner
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
        (
            {},
            {"resample": 1},
            r"with Pillow's filter 1, and the decoder has 2 \(bilinear\) and 3 \(bicubic\)",
        ),
        ({}, {"do_pad": True}, "asks for do_pad, which the decoder does not do"),
        ({}, {"crop_pct": 0.9}, "asks for crop_pct, which the decoder does not do"),
        ({}, {"size": {"height": 64, "width": 96}}, "makes images of .*, and only square ones are served"),
        ({}, {"size": {"longest_edge": 64}}, "a size that is not served"),
        ({}, {"do_center_crop": True, "crop_size": {"height": 64, "width": 48}}, "only square ones"),
        (
            {},
            {"do_center_crop": True, "crop_size": 80},
            "crops 80 from .*, which the decoder does not fill up",
        ),
        ({}, {"do_center_crop": True, "crop_size": 64, "do_resize": False}, "crops images without a resize"),
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


@pytest.mark.parametrize(
    ("model_type", "preprocessor", "expected"),
    [
        ("vit", {"size": 64}, ("squash", 1.0, "bilinear", 0.5)),
        ("vit", {"size": 64, "resample": 3, "crop_size": 48}, ("squash", 1.0, "bicubic", 0.5)),
        ("vit", {"size": 64, "feature_extractor_type": "CLIPFeatureExtractor"},
         ("center", 1.0, "bicubic", 0.481)),
        ("deit", {"size": 80, "crop_size": 64, "do_center_crop": True}, ("squash", 0.8, "bicubic", 0.5)),
        ("deit", {"size": {"height": 80, "width": 80}, "crop_size": {"height": 64, "width": 64}},
         ("squash", 0.8, "bicubic", 0.5)),
        ("deit", {"size": 64, "do_center_crop": False, "crop_size": 32}, ("squash", 1.0, "bicubic", 0.5)),
    ],
)  # fmt: skip
def test_preprocessors_of_old_versions(
    tmp_path: Path, model_type: str, preprocessor: dict[str, Any], expected: tuple[str, float, str, float]
) -> None:
    """They leave values out, and give a size as one number, which is a square for ViT and DeiT."""
    module = deit() if model_type == "deit" else vit()
    loaded = hub.load(str(saved(tmp_path / "a", module, **preprocessor)))
    spec = loaded.input
    assert (spec.crop_mode, spec.crop_pct, spec.interpolation) == expected[:3]
    assert loaded.mean[0] == pytest.approx(expected[3], abs=1e-3)


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ("ViTImageProcessor", {"size": {"height": 64, "width": 64}}),
        ("DeiTImageProcessor", {"size": {"height": 72, "width": 72}, "crop_size": 64}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("BitImageProcessor", {"size": {"shortest_edge": 73}, "crop_size": {"height": 64, "width": 64}}),
        ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}}),
    ],
)  # fmt: skip
def test_pixels_are_those_of_transformers(tmp_path: Path, processor: str, size: dict[str, Any]) -> None:
    """From the file to the normalised pixels, for an image that is not square."""
    own = getattr(transformers, f"{processor}Pil")(**size)
    folder = saved(tmp_path / "a", vit())
    own.save_pretrained(folder)
    runner = TorchRunner(hub.load(str(folder)))
    ramp = np.linspace(0, 255, 200 * 120 * 3).reshape(120, 200, 3)
    picture = Image.fromarray((ramp + 40 * np.sin(ramp)).clip(0, 255).astype(np.uint8))
    expected = torch.as_tensor(np.stack(own([picture])["pixel_values"]))
    assert runner.card.input is not None
    data = BytesIO()
    picture.save(data, "PNG")
    decoded = decode_image(data.getvalue(), runner.card.input, 64, 10**6)
    pixels = runner.preprocess(runner.stack([decoded], runner.full), 64)
    # Both round to bytes once. The filter of a cropped box may differ by one step at some pixels.
    assert (pixels - expected).abs().mean() < 0.01
    assert (pixels - expected).abs().max() < 0.1
