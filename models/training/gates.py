"""Train IA-RED's gates on a finished trunk: `python -m training.gates --model vit-t --run RUN`.

The method is that of `foveate.models.distillation.gates`, with labels as targets.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from torch import nn

from foveate.models.distillation.gates import KEEP_RATES, advantage, rollout
from foveate.models.heads.gates import Gate
from foveate.models.vit.vit import ElasticViT
from training.batches import SceneBatch
from training.family import FAMILY
from training.images import normalise
from training.loader import batches
from training.run_files import append_row

STAGES = {"vit-t": (3, 6, 9), "vit-xs": (2, 4, 6)}
"""Blocks before each gate."""
OFFSET = 3_000_000
"""First step in the stream of scenes. Earlier runs did not use scenes from here on."""


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
