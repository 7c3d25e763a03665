"""The parts that are trained: their losses reach their own parameters alone, and what they report."""

import random

import pytest
import torch

from foveate.models.distillation.exit_heads import new_head
from foveate.models.distillation.parts import (
    ExitHeads,
    PatchReaders,
    TokenGates,
    TrainablePart,
    answers,
    full_logits,
    most_frequent,
)
from foveate.models.heads import ExitSpec
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.heads.gates import Gate
from foveate.models.vit.vit import ElasticViT
from tests.support.measuring import CONFIG, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = CONFIG.image_size


def part_of(name: str) -> tuple[ElasticViT, TrainablePart]:
    model = tiny().model
    match name:
        case "exits":
            for after in (1, 3):
                model.exit_heads[str(after)] = new_head(model, ExitSpec(after, "global", 2))
            return model, ExitHeads(model.requires_grad_(False))
        case "gates":
            model.gates["2"] = Gate(CONFIG.width)
            return model, TokenGates(model.requires_grad_(False))
        case _:
            torch.manual_seed(0)
            model.dense = DenseHead(CONFIG, DenseSpec(classes=6, width=8, fine=8)).eval()
            return model, PatchReaders(model.requires_grad_(False))


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["exits", "gates", "readers"])
def test_the_loss_reaches_the_part_and_nothing_else(name: str) -> None:
    model, part = part_of(name)
    part.module.requires_grad_(True)
    for seed in range(4):
        part.loss(images(), random.Random(seed)).backward()  # type: ignore[no-untyped-call]
    own = {id(p) for p in part.module.parameters()}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in part.module.parameters())
    assert all(p.grad is None for p in model.parameters() if id(p) not in own)


@pytest.mark.parametrize("name", ["exits", "gates", "readers"])
def test_training_does_not_change_full(name: str) -> None:
    model, part = part_of(name)
    before = full_logits(model, images())
    part.module.requires_grad_(True)
    optim = torch.optim.SGD(part.module.parameters(), lr=0.1)
    part.loss(images(), random.Random(0)).backward()  # type: ignore[no-untyped-call]
    optim.step()
    part.module.requires_grad_(False)
    rows = part.finish([images(), images(3)])
    assert torch.equal(full_logits(model, images()), before)
    assert all(0 <= row.agreement <= 1 and 0 <= row.baseline <= 1 for row in rows)


def test_a_reader_is_replaced_only_if_it_got_better() -> None:
    model, part = part_of("readers")
    start = {name: value.clone() for name, value in part.module.state_dict().items()}
    dense = model.dense
    assert dense is not None
    last = dense.readers[-1].state_dict()
    with torch.no_grad():
        for name, value in part.module.state_dict().items():
            other = last[name.partition(".")[2]] if name.startswith("2.") else torch.zeros_like(value)
            value.copy_(other)
    rows = part.finish([images()])
    assert [row.name for row in rows] == [f"patches after block {n}" for n in (1, 2, 3)]
    # A reader of zeros gives all patches one class; one that did not gain by that has its weights back.
    after = part.module.state_dict()
    untouched = [
        n for n in ("0", "1", "2") if all(torch.equal(after[k], start[k]) for k in after if k[0] == n)
    ]
    assert untouched or all(row.agreement > 0 for row in rows)


def test_answers_are_those_of_the_reducer() -> None:
    model = tiny().model
    assert torch.equal(answers(model, images(), "none"), full_logits(model, images()))
    assert not torch.equal(answers(model, images(), "evit:0.5"), full_logits(model, images()))
    assert most_frequent(torch.tensor([3, 1, 3, 3])) == 0.75
