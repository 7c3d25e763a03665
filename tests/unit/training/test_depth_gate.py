"""Training the depth gate: the quality of masks, and the fit."""

import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install --group dev")

from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.runners.dense import dense_of
from tests.support.dense_heads import dense_checkpoint
from training.depth_gate import gate_of, mask_qualities, scene_iou
from training.segment import MaskBatch

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_iou_of_a_scene_is_the_mean_over_its_objects() -> None:
    truth = torch.tensor([[[1, 1, 2, 2]], [[0, 0, 0, 0]], [[3, 3, 0, 0]]])
    mask = torch.tensor([[[1, 0, 2, 2]], [[0, 4, 0, 0]], [[0, 0, 3, 3]]])
    assert scene_iou(mask, truth).tolist() == [0.75, 1.0, 0.0]


def test_a_head_without_a_gate_is_refused() -> None:
    with pytest.raises(ValueError, match="no gate"):
        gate_of(dense_of(dense_checkpoint().model))


def test_each_scene_has_a_quality_for_each_depth() -> None:
    torch.manual_seed(0)
    model = dense_checkpoint().model
    model.dense = DenseHead(model.config, DenseSpec(3, gate=8)).eval()
    side = model.config.image_size
    classes = torch.zeros(2, side, side, dtype=torch.uint8)
    classes[:, : side // 2] = 1
    images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    features, quality = mask_qualities(model, MaskBatch(images, classes))
    assert features.shape[:2] == (2, (side // model.config.patch_size) ** 2)
    assert quality.shape == (2, len(gate_of(model.dense).depths))
    assert ((quality >= 0) & (quality <= 1)).all()
