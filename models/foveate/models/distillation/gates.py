"""Token gates: where they stand, and the policy gradient that trains them.

"IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers" (NeurIPS 2021), section 3.3.
Three things differ here. The paper learns the stages one after the other; here they learn together. The trunk
is frozen, so that one set of weights serves every reducer. A stage samples a given number of patches without
replacement (Gumbel top-k) instead of each patch independently, because it keeps a given number of patches
when it serves.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers.config import ViTConfig
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT

KEEP_RATES = (0.7, 0.5, 0.4, 0.3, 0.2)
"""Keep rates to draw from in training."""


def default_gates(config: ViTConfig) -> tuple[int, ...]:
    """Blocks before each gate: a quarter, a half and three quarters of them. None without a class token, with
    which gates compare patches."""
    blocks = {round(config.depth * part / 4) for part in (1, 2, 3)} if config.class_token else set()
    return tuple(sorted(block for block in blocks if 0 < block < config.depth))


def sample(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw `count` patches without replacement, with the log-probability of the draw.

    scores: (B, P) logits. Returns positions (B, count) and (B,): Gumbel top-k draws from the
    Plackett-Luce distribution, in order ("Stochastic Beams and Where to Find Them", section 2.3).
    """
    noise = -torch.log(-torch.log(torch.rand_like(scores).clamp(1e-9, 1 - 1e-7)))
    order = (scores + noise).argsort(dim=1, descending=True)
    ranked = scores.gather(1, order)
    # The probability of each draw is relative to the patches that remained.
    remaining = ranked.flip(1).logcumsumexp(1).flip(1)
    log_probability = (ranked - remaining)[:, :count].sum(1)
    return order[:, :count], log_probability


def rollout(
    model: ElasticViT, gates: nn.ModuleDict, tokens: Tokens, keep: float, greedy: bool
) -> tuple[Tensor, Tensor]:
    """Run the trunk on sampled patches, or with `greedy` on the best-scored ones.

    Returns class logits (B, C) and the log-probabilities of the samples (B,).
    """
    identity, total = create("none", model), torch.zeros(tokens.x.shape[0], device=tokens.x.device)
    for index, block in enumerate(model.blocks):
        if str(index) in gates:
            gate = gates[str(index)]
            # Autocast would reuse the copy of the weights that it cached in a pass without gradients.
            with torch.autocast(tokens.x.device.type, enabled=False):
                scores = gate(tokens.x.detach().float(), tokens.prefix).clamp(1e-4, 1 - 1e-4).logit()
                count = math.ceil(keep * scores.shape[1])
                chosen, log_probability = sample(scores, count)
            if greedy:
                chosen = scores.topk(count, dim=1).indices
            else:
                total = total + log_probability / count
            prefix = torch.arange(tokens.prefix, device=chosen.device).expand(len(chosen), -1)
            tokens = tokens.apply(Assignment(torch.cat([prefix, chosen + tokens.prefix], dim=1)))
        with torch.no_grad():
            tokens = block(tokens, identity, index)
    with torch.no_grad():
        return model.classify(tokens), total


def advantage(sampled: Tensor, best: Tensor, labels: Tensor) -> Tensor:
    """The gain of the sampled patches over the best-scored ones for each image: (B,).

    sampled, best: class logits (B, C); labels: (B,). The paper's reward for a correct class is 1 minus the
    square of the share kept. The share is given here, so the reward is the log-probability of the class.
    """
    gain = F.cross_entropy(best.float(), labels, reduction="none")
    gain = gain - F.cross_entropy(sampled.float(), labels, reduction="none")
    return gain / (gain.std() + 1e-6)
