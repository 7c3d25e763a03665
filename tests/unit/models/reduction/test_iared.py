"""IA-RED^2: trained gates decide which patches stay, one stage at a time."""

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.heads.gates import Gate
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs, UntrainedContext
from foveate.models.vit.vit import ElasticViT

CONFIG = ViTConfig(image_size=96, width=24, depth=6, heads=3, classes=4, registers=1)

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def gated_model() -> ElasticViT:
    """A model with gates before the third and the fifth block."""
    model, generator = ElasticViT(CONFIG, gates=(2, 4)).eval(), torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.3 * noise)
    return model


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 96, 96, generator=torch.Generator().manual_seed(3))


def test_only_blocks_behind_a_gate_reduce() -> None:
    reducer = reduction.create("iared:0.5", gated_model())
    assert [block for block in range(6) if reducer.needs(block) == Needs.NOTHING] == [2, 4]
    assert reducer.after(38, 2, 6) == (38, 38, 20, 20, 11, 11)


def test_the_patches_with_the_best_scores_stay_in_image_order() -> None:
    model = gated_model()
    tokens = model.embed(images())
    kept = reduction.create("iared:0.3", model)(tokens, Attention(), 2).kept
    scores = model.gates["2"](tokens.x, 2)
    assert kept.shape == (3, 2 + 11)
    for row in range(3):
        best = sorted(range(36), key=lambda patch: -float(scores[row, patch]))[:11]
        assert kept[row].tolist() == [0, 1, *(2 + patch for patch in sorted(best))]


def test_a_gate_computes_equation_3() -> None:
    model = gated_model()
    x, gate = model.embed(images()).x, model.gates["4"]
    assert isinstance(gate, Gate)
    scores = gate(x, 2)
    normed = gate.norm(x[1])
    for patch in (0, 17, 35):
        query, key = gate.query(normed[2 + patch]).view(3, 32), gate.key(normed[0]).view(3, 32)
        per_head = [torch.sigmoid(query[head] @ key[head] / 32**0.5) for head in range(3)]
        assert float(scores[1, patch]) == pytest.approx(float(sum(per_head)) / 3, abs=1e-5)


@pytest.mark.parametrize("argument", ["", ":", ":0", ":1.1", ":-1", ":nan", ":half"])
def test_an_argument_that_is_no_keep_rate_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="keep rate"):
        reduction.create(f"iared{argument}", gated_model())


def test_a_model_without_gates_or_without_a_class_token_is_refused() -> None:
    with pytest.raises(BadPlan, match="needs trained gates"):
        reduction.create("iared:0.5", UntrainedContext(CONFIG))
    with pytest.raises(BadPlan, match="class token"):
        reduction.create("iared:0.5", UntrainedContext(ViTConfig(class_token=False, pool="avg")))
