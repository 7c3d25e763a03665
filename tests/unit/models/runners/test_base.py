"""The base of runners: preprocessing, stacking, batch limits, fingerprints and the model check."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foveate.core.errors import BadPlan, RunFailed
from foveate.core.plan import Plan
from foveate.models.runners.base import CLIP_BATCH_DIVISOR, MAX_BATCH, BaseRunner, check_model, fingerprint

MEAN, STD = (0.1, 0.5, 0.9), (0.2, 0.25, 0.5)

pytestmark = pytest.mark.usefixtures("one_thread")


def base_runner(side: int = 32, frames: int = 0, max_batch: int = 0) -> BaseRunner:
    runner = BaseRunner("fp32", "cpu", max_batch, MEAN, STD, frames)
    runner.full = Plan("tiny", side)
    return runner


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def test_preprocess_normalises_each_channel() -> None:
    pixels = random_pixels(2, 32, 32, 3)
    images = base_runner().preprocess(torch.from_numpy(pixels), 32)
    assert images.shape == (2, 3, 32, 32)
    expected = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    assert np.abs(images.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-5


def test_preprocess_scales_larger_images_down_as_pillow_does() -> None:
    pixels = random_pixels(1, 64, 64, 3)
    images = base_runner().preprocess(torch.from_numpy(pixels), 32)
    scaled = np.asarray(Image.fromarray(pixels[0]).resize((32, 32), Image.Resampling.BICUBIC))
    expected = (scaled / 255 - np.array(MEAN)) / np.array(STD)
    assert np.abs(images[0].permute(1, 2, 0).numpy() - expected).max() < 2.5 / 255 / min(STD)


def test_preprocess_converts_to_the_runners_precision() -> None:
    runner = BaseRunner("bf16", "cpu", 0, MEAN, STD)
    assert runner.preprocess(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), 8).dtype == torch.bfloat16


def test_stack_keeps_the_order_of_images() -> None:
    media = [random_pixels(32, 32, 3) + number for number in range(3)]
    batch = base_runner().stack(media, Plan("tiny", 32))
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch.numpy(), np.stack(media))


def test_stack_takes_images_of_the_plans_size_or_of_fulls() -> None:
    runner, plan = base_runner(64), Plan("tiny", 32)
    for side in (64, 32):
        assert runner.stack([random_pixels(side, side, 3)] * 2, plan).shape == (2, side, side, 3)
    for media in (
        [random_pixels(48, 48, 3)],
        [random_pixels(64, 64, 3), random_pixels(32, 32, 3)],
        [random_pixels(32, 32)],
        [random_pixels(8, 32, 32, 3)],
    ):
        with pytest.raises(RunFailed, match="expected images of 32 pixels a side"):
            runner.stack(media, plan)


def test_stack_takes_media_that_are_decoded_for_a_larger_plan() -> None:
    """The ladder holds a plan of 48 pixels, so all media have that size."""
    runner = base_runner()
    runner.decoded_side = 48
    media = [random_pixels(48, 48, 3)] * 2
    for plan in (Plan("tiny", 48), Plan("tiny", 32), Plan("tiny", 16)):
        assert runner.preprocess(runner.stack(media, plan), plan.image_size).shape[-1] == plan.image_size
    assert runner.blank_batch(2).shape == (2, 48, 48, 3)
    with pytest.raises(RunFailed):
        runner.stack([random_pixels(48, 48, 3), random_pixels(32, 32, 3)], Plan("tiny", 48))


def test_stack_takes_clips_of_the_runners_frames() -> None:
    runner = base_runner(32, frames=8)
    assert runner.stack([random_pixels(8, 32, 32, 3)] * 2, runner.full).shape == (2, 8, 32, 32, 3)
    with pytest.raises(RunFailed):
        runner.stack([random_pixels(4, 32, 32, 3)], runner.full)


def test_blank_batches_have_fulls_shape() -> None:
    assert base_runner(32).blank_batch(3).shape == (3, 32, 32, 3)
    assert base_runner(32, frames=8).blank_batch(2).shape == (2, 8, 32, 32, 3)


def test_batch_limit_is_the_devices_unless_given() -> None:
    assert base_runner().max_batch == MAX_BATCH["cpu"]
    assert base_runner(frames=8).max_batch == MAX_BATCH["cpu"] // CLIP_BATCH_DIVISOR
    assert base_runner(max_batch=5).max_batch == base_runner(frames=8, max_batch=5).max_batch == 5


def test_cost_varies_with_exits_and_content_rungs() -> None:
    runner = base_runner()
    for text, varies in (("full", False), ("evit:0.5", False), ("exit:0.9", True), ("content:0.9", True)):
        assert runner.cost_varies(Plan.parse(text, runner.full)) == varies


def test_fingerprint_depends_on_weights_names_and_texts() -> None:
    layer = nn.Linear(3, 2)
    before = fingerprint(layer, "a")
    assert before == fingerprint(layer, "a")
    assert len(before) == 32
    different = {before, fingerprint(layer, "b"), fingerprint(nn.Sequential(layer), "a")}
    with torch.no_grad():
        layer.bias[0] += 1
    assert len({*different, fingerprint(layer, "a")}) == 4


def test_check_model_refuses_other_models_and_precisions() -> None:
    full = Plan("tiny", 32)
    check_model(Plan("sibling", 16), full, {"tiny", "sibling"})
    with pytest.raises(BadPlan, match="other is not a variant of tiny"):
        check_model(Plan("other", 32), full, {"tiny", "sibling"})
    with pytest.raises(BadPlan, match=r"sibing is not a variant of tiny; did you mean sibling\?"):
        check_model(Plan("sibing", 32), full, {"tiny", "sibling"})
    with pytest.raises(BadPlan, match="tiny is loaded in fp32, not in bf16"):
        check_model(Plan("tiny", 32, "bf16"), full, {"tiny"})
