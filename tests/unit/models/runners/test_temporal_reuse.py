"""Temporal reuse against a plain loop over frames and patches."""

import pytest
import torch
from torch import Tensor

from foveate.models.runners.temporal_reuse import NOISE, cell_colours, encode_first, encode_next


def read(images: Tensor, kept: Tensor | None) -> Tensor:
    """The mean colour of each patch of 8 pixels, for those that enter."""
    patches = torch.nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
    if kept is None:
        return patches
    return torch.zeros_like(patches).scatter(
        1, kept.unsqueeze(-1).expand(-1, -1, 3), patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, 3))
    )


def reuse_by_loops(frames: Tensor, share: int, weight: Tensor | None) -> Tensor:
    """One clip (T, 3, S, S): frame by frame, patch by patch."""
    cells, features = cell_colours(frames, 8), read(frames, None)
    held, now, out = cells[0].clone(), features[0].clone(), [features[0].clone()]
    for number in range(1, len(frames)):
        change = [float((cells[number, p] - held[p]).abs().mean()) for p in range(len(held))]
        counts = change if weight is None else [c * float(w) for c, w in zip(change, weight, strict=True)]
        for p in sorted(range(len(held)), key=lambda p: -counts[p])[:share]:
            if change[p] > NOISE:
                held[p], now[p] = cells[number, p], features[number, p]
        out.append(now.clone())
    return torch.stack(out)


@pytest.mark.parametrize("weighted", [False, True])
def test_reuse_equals_a_plain_loop(weighted: bool) -> None:
    torch.manual_seed(0)
    clips = torch.rand(3, 6, 3, 32, 32)
    weight = torch.rand(3, 16) + 0.5 if weighted else None
    memory = encode_first(read, clips[:, 0], 8)
    actual, after = encode_next(read, clips[:, 1:], 0.3, 8, memory, weight)
    for row in range(3):
        expected = reuse_by_loops(clips[row], 5, None if weight is None else weight[row])
        torch.testing.assert_close(actual[row], expected[1:])
        torch.testing.assert_close(after.features[row], expected[-1])


def test_reuse_can_continue_from_its_state() -> None:
    torch.manual_seed(1)
    clips = torch.rand(2, 7, 3, 32, 32)
    start = encode_first(read, clips[:, 0], 8)
    at_once, _ = encode_next(read, clips[:, 1:], 0.25, 8, start)
    early, memory = encode_next(read, clips[:, 1:4], 0.25, 8, start)
    late, _ = encode_next(read, clips[:, 4:], 0.25, 8, memory)
    torch.testing.assert_close(at_once, torch.cat([early, late], 1))


def test_slow_change_adds_up() -> None:
    """A patch that changes a little in every frame is computed again in the end."""
    frames = torch.zeros(1, 6, 3, 32, 32)
    for number in range(6):
        frames[:, number, :, :8, :8] = 0.1 * number
    frames[:, 1:3, :, 8:16, 8:16] = 0.15  # one that changed once, by more than a single step
    actual, _ = encode_next(read, frames[:, 1:], 1 / 16, 8, encode_first(read, frames[:, 0], 8))
    assert actual[0, -1, 0, 0] > 0.3
