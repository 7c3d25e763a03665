"""Simulated clicks, and the loss of the masks that they produce."""

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install --group dev")

from training.clicks import add_clicks, farthest_pixel, mask_loss, next_click


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((32, 32), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_the_first_click_is_inside_the_object() -> None:
    x, y, sign = next_click(square(0, 0, 0), square(8, 16, 9), farthest_pixel)
    assert sign == 1
    assert square(8, 16, 9)[int(y * 32), int(x * 32)]


def test_a_click_is_in_the_largest_error_and_its_sign_says_which() -> None:
    target = square(4, 4, 10)
    x, y, sign = next_click(target | square(18, 18, 12), target, farthest_pixel)
    assert sign == 0
    assert square(18, 18, 12)[int(y * 32), int(x * 32)]


def test_without_an_error_the_click_is_on_the_object() -> None:
    target = square(4, 4, 10)
    x, y, sign = next_click(target, target, farthest_pixel)
    assert sign == 1
    assert target[int(y * 32), int(x * 32)]


def test_each_target_gets_one_more_point() -> None:
    masks = torch.from_numpy(np.stack([square(2, 2, 8), square(20, 20, 8)]))
    points = add_clicks(torch.zeros(2, 0, 3), torch.zeros_like(masks), masks, farthest_pixel)
    points = add_clicks(points, torch.zeros_like(masks), masks, farthest_pixel)
    assert points.shape == (2, 2, 3)


def test_a_better_mask_has_a_lower_loss() -> None:
    masks = torch.from_numpy(square(4, 4, 10))[None]
    right = torch.where(masks, 5.0, -5.0)
    assert (
        mask_loss(right, masks) < 0.1 < mask_loss(torch.zeros_like(right), masks) < mask_loss(-right, masks)
    )
