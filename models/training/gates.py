"""Train IA-RED's gates on a finished trunk: `python -m training.gates --model vit-t --run RUN`.

"IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers" (NeurIPS 2021), section 3.3:
policy gradient. Three things differ here. The paper learns the stages one after the other; here they learn
together. The trunk is frozen, so that one set of weights serves every reducer. A stage samples a given number
of patches without replacement (Gumbel top-k) instead of each patch independently, because it keeps a given
number of patches when it serves.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.heads.gates import Gate
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT
from training.batches import SceneBatch
from training.family import FAMILY
from training.images import normalise
from training.loader import batches
from training.run_files import append_row

STAGES = {"vit-t": (3, 6, 9), "vit-xs": (2, 4, 6)}
"""Blocks before each gate."""
KEEP_RATES = (0.7, 0.5, 0.4, 0.3, 0.2)
OFFSET = 3_000_000
"""First step in the stream of scenes. Earlier runs did not use scenes from here on."""


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
    identity, total = create("none", model), torch.zeros(tokens.x.shape[0])
    for index, block in enumerate(model.blocks):
        if str(index) in gates:
            gate = gates[str(index)]
            # Autocast would reuse the copy of the weights that it cached in a pass without gradients.
            with torch.autocast("cpu", enabled=False):
                scores = gate(tokens.x.detach().float(), tokens.prefix).clamp(1e-4, 1 - 1e-4).logit()
                count = math.ceil(keep * scores.shape[1])
                chosen, log_probability = sample(scores, count)
            if greedy:
                chosen = scores.topk(count, dim=1).indices
            else:
                total = total + log_probability / count
            prefix = torch.arange(tokens.prefix).expand(len(chosen), -1)
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


def train_step(
    model: ElasticViT,
    gates: nn.ModuleDict,
    optim: torch.optim.Optimizer,
    batch: SceneBatch,
    keep: float,
) -> float:
    """One step of the optimiser at a keep rate. Returns the top-1 of the best-scored patches."""
    optim.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            tokens = model.embed(normalise(batch.images))
            best, _ = rollout(model, gates, tokens, keep, greedy=True)
        sampled, log_probability = rollout(model, gates, tokens, keep, greedy=False)
    loss = -(advantage(sampled, best, batch.labels) * log_probability).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(gates.parameters(), 1.0)
    optim.step()
    return (best.argmax(1) == batch.labels).float().mean().item()


def train(name: str, run: Path, steps: int, batch_size: int, lr: float, seed: int) -> None:
    """Train or resume. The run's folder gets gates.pt and gates.jsonl, a line every 50 steps."""
    torch.manual_seed(seed)
    model = ElasticViT(FAMILY[name].config).eval().requires_grad_(False)
    trunk = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    model.load_state_dict(trunk)
    gates = nn.ModuleDict({str(after): Gate(model.config.width) for after in STAGES[name]})
    optim = torch.optim.AdamW(gates.parameters(), lr=lr, weight_decay=0.01)
    step, path = 0, run / "gates.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        gates.load_state_dict(state["gates"])
        optim.load_state_dict(state["optim"])
        step = state["step"]
    stream, started, running = batches(step + OFFSET, batch_size), time.monotonic(), 0.0
    while step < steps:
        rng, batch = random.Random(seed * 1_000_003 + step), next(stream)
        optim.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        top1 = train_step(model, gates, optim, batch, rng.choice(KEEP_RATES))
        step += 1
        running = top1 if running == 0 else 0.95 * running + 0.05 * top1
        if step % 50 == 0 or step == steps:
            minutes = round((time.monotonic() - started) / 60, 2)
            torch.save({"gates": gates.state_dict(), "optim": optim.state_dict(), "step": step}, path)
            append_row(run / "gates.jsonl", {"step": step, "minutes": minutes, "top1": round(running, 4)})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=FAMILY, default="vit-t")
    parser.add_argument("--run", type=Path, required=True, help="folder of the finished run")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.model, args.run, args.steps, args.batch_size, args.lr, args.seed)


if __name__ == "__main__":
    main()
