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
from loadtests.reach.architectures import CLASSES, OPAQUE, SIDE, classifier, processor
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()
pytestmark = pytest.mark.usefixtures("one_thread")


def model(name: str, **changes: Any) -> Any:
    if not hasattr(transformers, f"{name}ForImageClassification"):
        pytest.skip(f"this version of transformers has no {name}")
    return classifier(name, **changes)


def saved(folder: Path, built: Any, **changes: Any) -> str:
    built.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor(**changes)))
    return str(folder)


def load(folder: str) -> OpaqueRunner:
    runner = TransformersLoader().load(folder, LoadOptions("fp32", "cpu", 1), warm_ladder=False)
    assert isinstance(runner, OpaqueRunner)
    return runner


def answer(runner: OpaqueRunner, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (result,) = runner.run(runner.stack([pixels], runner.full), runner.full)
    assert isinstance(result, Result)
    return result.scores


@pytest.mark.parametrize("name", OPAQUE)
def test_scores_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    built = model(name)
    runner = load(saved(tmp_path / "m", built))
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    mean, std = (np.array(processor()[key]) for key in ("image_mean", "image_std"))
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
    mean, std = (torch.tensor(processor()[key]) for key in ("image_mean", "image_std"))
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
    with pytest.raises(SetupError, match=r"gives no valid answer to a blank image: .* not finite"):
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
    kind = getattr(transformers, name.replace("ImageProcessor", "ImageProcessorPil"), None)
    kind = kind or getattr(transformers, name)
    expected = kind.from_pretrained(tmp_path / "m")(smooth, return_tensors="pt")["pixel_values"]
    smooth.save(tmp_path / "image.png")
    assert runner.card.input is not None
    pixels = decode_image((tmp_path / "image.png").read_bytes(), runner.card.input, SIDE, 10**6)
    actual = runner.preprocess(runner.stack([pixels], runner.full), SIDE)
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().mean()) < 0.03 * float(expected.std())
