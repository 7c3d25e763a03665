"""Exit heads: where they stand, how they start, and the loss that trains them.

"LGViT: Dynamic Early Exiting for Accelerating Vision Transformer" (ACM MM 2023), the second training stage:
the trunk is frozen, and all heads learn at once from the final classifier.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.heads import ExitSpec
from foveate.models.heads.exits import ExitHead, build
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Reducer
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT

DISTILLATION_TEMPERATURE, DISTILLATION_SHARE = 2.0, 0.5
"""The share is that of the loss."""
LOCAL, GLOBAL = (4, 5, 6), (8, 10)
"""Blocks of 12 after which local and global heads stand."""
LOCAL_SIZE, GLOBAL_SIZE = 3, 2


def default_exits(config: ViTConfig) -> tuple[ExitSpec, ...]:
    """Local heads after a third to a half of the blocks, global ones after two thirds and five sixths."""
    specs = {round(of_12 * config.depth / 12): ExitSpec(0, "global", GLOBAL_SIZE) for of_12 in GLOBAL}
    specs |= {round(of_12 * config.depth / 12): ExitSpec(0, "local", LOCAL_SIZE) for of_12 in LOCAL}
    blocks = sorted(after for after in specs if 0 < after < config.depth)
    return tuple(ExitSpec(after, specs[after].kind, specs[after].size) for after in blocks)


def new_head(model: ElasticViT, spec: ExitSpec) -> ExitHead:
    """A head to train. Its classifier starts as the trunk's own, which fits the features of late blocks."""
    head = build(model.config, spec)
    norm = model.fc_norm if model.config.fc_norm else model.norm
    if isinstance(norm, nn.LayerNorm):
        head.final_norm.load_state_dict(norm.state_dict())
    head.head.load_state_dict(model.head.state_dict())
    return head.eval()


def heads_of(model: ElasticViT) -> dict[int, ExitHead]:
    """The exit heads by the number of blocks before them."""
    return {int(after): cast("ExitHead", head) for after, head in model.exit_heads.items()}


@torch.no_grad()
def run_trunk(model: ElasticViT, images: Tensor, reducer: Reducer) -> tuple[dict[int, Tokens], Tensor]:
    """The input tokens of each head, and the final classifier's logits (B, C)."""
    tokens, inputs = model.embed(images), {}
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
        if str(index + 1) in model.exit_heads:
            inputs[index + 1] = tokens
    return inputs, model.classify(tokens).float()


def distillation(logits: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
    """One head's loss (1 - a) CE(logits, labels) + a T^2 KL(teacher / T || logits / T): the paper's
    prediction distillation. logits, teacher: (B, C); labels: (B,).

    The paper's feature distillation, from the patch map of the last block to that of the head, is left out.
    Heads here have pooled vectors only; with these, no head improved in a trial of 150 steps.
    """
    hard = F.cross_entropy(logits, labels)
    soft = F.kl_div(
        (logits / DISTILLATION_TEMPERATURE).log_softmax(1),
        (teacher / DISTILLATION_TEMPERATURE).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - DISTILLATION_SHARE) * hard + DISTILLATION_SHARE * DISTILLATION_TEMPERATURE**2 * soft
