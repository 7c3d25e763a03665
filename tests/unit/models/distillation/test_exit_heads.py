"""Exit heads to train: where they stand, how they start, and their loss."""

import pytest
import torch

from foveate.models.distillation.exit_heads import default_exits, distillation, new_head, run_trunk
from foveate.models.heads import ExitSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.reduction import create
from foveate.models.zoo import CheckpointCard
from tests.support.measuring import CONFIG, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6, 8, 12, 24, 40])
def test_exits_stand_between_a_third_and_five_sixths_of_any_depth(depth: int) -> None:
    config = ViTConfig(depth=depth)
    specs = default_exits(config)
    CheckpointCard("x", config, exits=specs)  # raises SetupError for exits out of order
    assert all(depth / 3 - 1 < spec.after < depth for spec in specs)
    assert len(specs) == {1: 0, 2: 1, 3: 2, 4: 3}.get(depth, len(specs))


def test_the_exits_of_twelve_blocks_are_those_of_the_shipped_model() -> None:
    local, global_ = [ExitSpec(n, "local", 3) for n in (4, 5, 6)], [ExitSpec(n, "global", 2) for n in (8, 10)]
    assert default_exits(ViTConfig()) == (*local, *global_)


def test_a_new_head_starts_with_the_classifier_of_the_trunk() -> None:
    model = tiny().model
    head = new_head(model, ExitSpec(2, "global", 2))
    state = model.state_dict()
    assert torch.equal(head.head.weight, state["head.weight"])
    assert torch.equal(head.final_norm.weight, state["norm.weight"])


def test_the_trunk_gives_each_heads_input_without_gradients() -> None:
    model = tiny().model
    model.exit_heads["2"] = new_head(model, ExitSpec(2, "local", 3))
    images = torch.randn(2, 3, CONFIG.image_size, CONFIG.image_size)
    inputs, logits = run_trunk(model, images, create("none", model))
    assert list(inputs) == [2] and not logits.requires_grad
    assert inputs[2].x.shape == (2, 17, CONFIG.width)


def test_the_loss_is_least_for_the_answers_of_the_teacher() -> None:
    teacher = torch.tensor([[4.0, 0.0, 0.0], [0.0, 6.0, 0.0]])
    classes = teacher.argmax(1)
    assert distillation(teacher, classes, teacher) < distillation(teacher.flip(1), classes, teacher)
