"""Plans of models of transformers: which are refused, attributes for one forward, and resized positions."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from foveate.core.errors import BadPlan
from foveate.models.huggingface.axes import changed, resize_positions
from tests.support import pretrained
from tests.support.pretrained import (
    SIDE,
    Make,
    load_runner,
    saved,
)

pytestmark = pytest.mark.usefixtures("one_thread")


TESTED = {
    "segformer": pretrained.segformer,
    "mask2former": pretrained.mask2former,
    "upernet": pretrained.upernet,
    "upernet_swin": pretrained.upernet_swin,
    "dpt": pretrained.dpt,
}


OTHERS = {"beit": pretrained.beit, "mobilevit": pretrained.mobilevit, "maskformer": pretrained.maskformer}


every_tested = pytest.mark.parametrize("make", TESTED.values(), ids=TESTED)


@every_tested
def test_plans_that_cannot_run_are_refused(make: Make, tmp_path: Path) -> None:
    runner = load_runner(saved(tmp_path / "m", make()))
    full = runner.full
    for wrong in (
        replace(full, variant="another"),
        replace(full, precision="bf16"),
        replace(full, image_size=50),
        replace(full, image_size=16),
        replace(full, image_size=2 * SIDE),
        replace(full, depth=99),
        replace(full, frames=4),
        replace(full, reducer="evit:0.5"),
        replace(full, exit="0.9"),
        replace(full, heads=1),
    ):
        with pytest.raises(BadPlan, match=r"^[^\n]+$"):
            runner.check(wrong)
    if make is not pretrained.mask2former:
        with pytest.raises(BadPlan, match="an image size, not depth:1"):
            runner.check(replace(full, depth=1))


def test_untested_architectures_have_the_full_plan_alone(tmp_path: Path) -> None:
    for make in OTHERS.values():
        runner = load_runner(saved(tmp_path / make.__name__, make()))
        assert runner.candidates() == (runner.full,)
        with pytest.raises(BadPlan, match="none but 96"):
            runner.check(replace(runner.full, image_size=64))


def test_attributes_are_changed_for_the_context_alone() -> None:
    target = SimpleNamespace(layers=3, size=96)
    with changed([(target, {"layers": 1})]):
        assert (target.layers, target.size) == (1, 96)
    assert target.layers == 3
    with pytest.raises(ValueError, match="inside"), changed([(target, {"layers": 2})]):
        raise ValueError("inside")
    assert target.layers == 3, "it is restored after an error too"


def test_resized_positions_keep_times_and_interpolate_space() -> None:
    table = torch.randn(1, 4 * 6 * 6, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(resize_positions(table, (4, 6), (4, 6)), table)
    fewer = resize_positions(table, (4, 6), (2, 6))
    grid = table.view(4, 36, 5)
    assert torch.equal(fewer.view(2, 36, 5), grid[[1, 3]]), "the times in the middle of equal spans"
    smaller = resize_positions(table, (4, 6), (4, 3))
    channels = grid.view(4, 6, 6, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(channels, size=(3, 3), mode="bicubic", align_corners=False)
    assert torch.equal(smaller.view(4, 3, 3, 5), expected.permute(0, 2, 3, 1))
