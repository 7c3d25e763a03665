"""Image classifiers of transformers answer as transformers itself does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.gateway.media.image import decode_image
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.transformers_models import TransformersLoader
from foveate.models.opaque.runner import OpaqueRunner
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()
pytestmark = pytest.mark.usefixtures("one_thread")

SIDE, CLASSES = 96, 7
LABELS = {index: f"label {index}" for index in range(CLASSES)}
PROCESSOR = {
    "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3],
}  # fmt: skip
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
ATTENTION = {"image_size": SIDE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Beit": {**ATTENTION, "intermediate_size": 64, "use_relative_position_bias": True},
    "Bit": {**STAGES, "embedding_size": 8, "num_groups": 4},
    "ConvNext": STAGES,
    "ConvNextV2": STAGES,
    "Data2VecVision": {**ATTENTION, "intermediate_size": 64},
    "Dinov2": {**ATTENTION, "patch_size": 8},
    "EfficientNet": {"image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 0.2,
                     "hidden_dim": 320},
    "FocalNet": {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2],
                 "focal_windows": [3, 3]},
    "HGNetV2": {"stem_channels": [3, 8, 8], "stage_in_channels": [8, 16], "stage_mid_channels": [8, 8],
                "stage_out_channels": [16, 32], "stage_num_blocks": [1, 1], "stage_downsample": [False, True],
                "stage_light_block": [False, True], "stage_kernel_size": [3, 5],
                "stage_numb_of_layers": [2, 2],
                "hidden_sizes": [16, 32], "depths": [1, 1], "embedding_size": 8},
    "Levit": {"image_size": SIDE, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2],
              "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    "MobileNetV1": {"image_size": SIDE, "depth_multiplier": 0.25},
    "MobileNetV2": {"image_size": SIDE, "depth_multiplier": 0.25},
    "MobileViT": {"image_size": SIDE, "hidden_sizes": [16, 24, 32],
                  "neck_hidden_sizes": [8, 16, 16, 24, 32, 32, 32]},
    "PoolFormer": STAGES,
    "RegNet": {**STAGES, "embedding_size": 8, "groups_width": 4},
    "ResNet": {**STAGES, "embedding_size": 8},
    "Segformer": {**STAGES, "num_attention_heads": [1, 1, 2, 2]},
    "SwiftFormer": {"image_size": SIDE, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
    "Swin": {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "Swinv2": {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "ViTMSN": {**ATTENTION, "patch_size": 8, "intermediate_size": 64},
}  # fmt: skip
"""Sizes of a tiny configuration of each architecture."""


def model(name: str, **changes: Any) -> Any:
    """A tiny classifier with random weights, whose norms and scales are not trivial."""
    if not hasattr(transformers, f"{name}ForImageClassification"):
        pytest.skip(f"this version of transformers has no {name}")
    config = getattr(transformers, f"{name}Config")(
        **(ARCHITECTURES.get(name, {}) | {"id2label": LABELS} | changes)
    )
    torch.manual_seed(0)
    built = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return built


def saved(folder: Path, built: Any, **processor: Any) -> str:
    built.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | processor))
    return str(folder)


def load(folder: str) -> OpaqueRunner:
    runner = TransformersLoader().load(folder, LoadOptions("fp32", "cpu", 1), warm_ladder=False)
    assert isinstance(runner, OpaqueRunner)
    return runner


def answer(runner: OpaqueRunner, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (result,) = runner.run(runner.stack([pixels], runner.full), runner.full)
    assert isinstance(result, Result)
    return result.scores


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    built = model(name)
    runner = load(saved(tmp_path / "m", built))
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    mean, std = (np.array(PROCESSOR[key]) for key in ("image_mean", "image_std"))
    images = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = built(images).logits.softmax(-1)[0].numpy()
    np.testing.assert_allclose(answer(runner, pixels), expected, atol=1e-5)
    for plan in runner.candidates():
        (result,) = runner.run(runner.blank_batch(1), plan)
        assert isinstance(result, Result) and result.scores.shape == (CLASSES,)


def test_multi_label_is_read_from_the_configuration(tmp_path: Path) -> None:
    built = model("ConvNext", problem_type="multi_label_classification")
    scores = answer(load(saved(tmp_path / "m", built)), np.zeros((SIDE, SIDE, 3), np.uint8))
    mean, std = (torch.tensor(PROCESSOR[key]) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        logits = built((-mean / std).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE)).logits[0]
    np.testing.assert_allclose(scores, logits.sigmoid().numpy(), atol=1e-5)


def test_regression_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", model("ConvNext", problem_type="regression"))
    with pytest.raises(SetupError, match="predicts numbers and no classes"):
        load(folder)


def test_classifier_that_the_file_lacks_is_refused(tmp_path: Path) -> None:
    built = model("ConvNext")
    built.convnext.save_pretrained(tmp_path / "m")
    folder = saved(tmp_path / "full", built)
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / "m" / file).write_text((Path(folder) / file).read_text())
    with pytest.raises(SetupError, match="no finite answer"):
        load(str(tmp_path / "m"))


PROCESSORS: dict[str, dict[str, Any]] = {
    "ConvNextImageProcessor": {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875},
    "LevitImageProcessor": {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}},
    "PoolFormerImageProcessor": {"size": {"shortest_edge": SIDE}, "crop_pct": 0.9,
                                 "crop_size": {"height": SIDE, "width": SIDE}},
    "EfficientNetImageProcessor": {"size": {"height": SIDE, "width": SIDE}, "include_top": True},
    "ViTImageProcessor": {"size": {"height": SIDE, "width": SIDE}},
    "BitImageProcessor": {"size": {"shortest_edge": 110}, "crop_size": {"height": SIDE, "width": SIDE}},
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_is_that_of_the_processor(name: str, tmp_path: Path) -> None:
    """The decoder crops the same part of an image, and the runner normalises it in the same way."""
    runner = load(saved(tmp_path / "m", model("ResNet"), image_processor_type=name, **PROCESSORS[name]))
    smooth = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8))
    smooth = smooth.resize((210, 150), Image.Resampling.BICUBIC)
    processor = getattr(transformers, name.replace("ImageProcessor", "ImageProcessorPil"), None)
    processor = processor or getattr(transformers, name)
    expected = processor.from_pretrained(tmp_path / "m")(smooth, return_tensors="pt")["pixel_values"]
    smooth.save(tmp_path / "image.png")
    assert runner.card.input is not None
    pixels = decode_image((tmp_path / "image.png").read_bytes(), runner.card.input, SIDE, 10**6)
    actual = runner.preprocess(runner.stack([pixels], runner.full), SIDE)
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().mean()) < 0.03 * float(expected.std())
