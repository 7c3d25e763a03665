"""What the patches of scenes show, and the visual tokens that are made of them."""

import numpy as np
import pytest
import torch

from training.chat_cache import SceneCache
from training.chat_targets import cell_shares, patch_rows, patch_targets
from training.chat_trunk import BACKGROUND, TINT_NUMBERS
from training.multi_scenes import TINTS, draw_multi


def test_shares_of_cells() -> None:
    classes = torch.full((1, 196), BACKGROUND)
    classes[0, 0], classes[0, 1], classes[0, 100] = 7, 9, -100
    cells = cell_shares(classes, BACKGROUND + 1, (2, 2), None)[0]
    assert cells[0, 7] == cells[0, 9] == 0.5 and cells[1, BACKGROUND] == 1
    assert cell_shares(classes, BACKGROUND + 1, None, torch.tensor([[1, 100]]))[0].sum(-1).tolist() == [1, 0]
    tints = torch.full((1, 196), -100)
    tints[0, 195] = 2
    shares = cell_shares(tints, len(TINTS), (2, 2), None)[0]
    assert shares[3].tolist() == [0, 0, 1, 0, 0, 0, 0, 0] and not shares[:3].any()


def test_the_grid_of_patches_follows_from_their_number() -> None:
    assert (patch_rows(196), patch_rows(100)) == (14, 10)
    with pytest.raises(ValueError, match="99 patches are not those of a square image"):
        patch_rows(99)
    classes = torch.full((1, 100), BACKGROUND)
    classes[0, 9] = 7  # the last patch of the first row
    cells = cell_shares(classes, BACKGROUND + 1, (2, 2), None)[0]
    assert [int(row.argmax()) for row in cells] == [BACKGROUND, 7, BACKGROUND, BACKGROUND]
    full = cell_shares(classes, BACKGROUND + 1, (10, 10), None)[0]
    assert full[9, 7] == 1 and full[:, BACKGROUND].sum() == 99


@pytest.mark.parametrize("side", [224, 160])
def test_targets_are_those_of_the_scenes_objects(side: int) -> None:
    scenes = [draw_multi("train", number) for number in range(12)]
    graphs = [scene.objects for scene in scenes]
    owners = {each: np.stack([scene.owners_at(each) for scene in scenes]) for each in (224, 160)}
    targets = patch_targets(SceneCache({}, graphs, owners), range(12), side)
    assert targets.classes.shape == targets.tints.shape == (12, (side // 16) ** 2)
    for row, scene in enumerate(scenes):
        for index, item in enumerate(scene.objects):
            covered = torch.from_numpy(scene.owners_at(side) == index)
            assert (targets.classes[row, covered] == item.label).all()
            expected = -100 if item.tint is None else TINT_NUMBERS[item.tint]
            assert (targets.tints[row, covered] == expected).all()
    assert (targets.tints >= 0).any() and (targets.classes == BACKGROUND).any()
