"""Training a dense head: the classes of patches, and features of dropped patches."""

import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install --group dev")

from foveate.models import reduction
from foveate.models.runners.dense import dense_of
from foveate.models.vit.vit import ResolvedPlan
from tests.support.dense_heads import dense_checkpoint
from training.segment import block_outputs, patch_classes, patch_features

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_a_patch_has_the_class_of_most_of_its_pixels() -> None:
    classes = torch.zeros(1, 4, 4, dtype=torch.uint8)
    classes[0, :2, :2] = torch.tensor([[1, 1], [1, 2]])
    classes[0, 2:, 2:] = 5
    assert patch_classes(classes, 2).tolist() == [[1, 0, 0, 5]]


def test_a_dropped_patch_has_the_features_of_the_block_before() -> None:
    model = dense_checkpoint().model
    head, depth = dense_of(model), model.config.depth
    images = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    outputs = block_outputs(model, images, ResolvedPlan(reduction.create("evit:0.5", model), depth))
    assert len(outputs) == depth + 1
    first_drop = next(n for n in range(1, depth + 1) if outputs[n].x.shape[1] < outputs[n - 1].x.shape[1])
    features = patch_features(head, outputs, first_drop)
    before, after = (head.read(outputs[n].grid(), n) for n in (first_drop - 1, first_drop))
    own = (features == after).all(-1)
    assert own.any() and not own.all()
    assert torch.equal(features[~own], before[~own])
