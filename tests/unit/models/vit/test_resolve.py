"""Plans resolved for a trunk: which image sizes, depths, heads and exits it can run."""

import pytest

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.resolve import MAX_ENLARGEMENT, resolve
from foveate.models.vit.vit import ElasticViT

MODEL = ElasticViT(ViTConfig(image_size=64, width=24, depth=4, heads=2, classes=5))


@pytest.mark.parametrize("side", [16, 64, 80, 64 * MAX_ENLARGEMENT])
def test_sizes_up_to_twice_the_own_can_run(side: int) -> None:
    assert resolve(MODEL, Plan("x", side, reducer="evit:0.5")).depth == 4


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("x@144", "image size must be a multiple of 16 and at most 128"),
        ("x@72", "image size must be a multiple of 16 and at most 128"),
        ("depth:5", "x has 4 blocks"),
        ("heads:3", "x has 2 heads"),
        ("exit:0.9", "x has no exit heads"),
        ("mctf:2/heads:1", "mctf:2 fuses the attention of all heads"),
    ],
)
def test_other_plans_are_refused(plan: str, sentence: str) -> None:
    with pytest.raises(BadPlan, match=sentence):
        resolve(MODEL, Plan.parse(plan, Plan("x", 64)))
