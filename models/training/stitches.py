"""Train the linear maps that stitch two siblings: `python -m training.stitches`.

"Stitched ViTs are Flexible Vision Backbones" (SN-Netv2, ECCV 2024), section 3: each map starts as the
least-squares solution between the features on its two sides. Then each step trains one stitch, drawn at
random. Both trunks are frozen, so that each still works alone.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.reduction import create
from foveate.models.vit.stitch import Stitch, StitchSpec
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights import hub
from foveate.models.weights.family import STITCHES, save_stitches
from training.batches import SceneBatch
from training.images import normalise
from training.loader import batches
from training.ship import ROOT, ZOO

FULL, LIGHT = "vit-t", "vit-xs"
SPECS = (
    *(StitchSpec(FULL, replaced, LIGHT, run) for replaced, run in ((3, 2), (6, 4), (9, 6))),
    *(StitchSpec(LIGHT, replaced, FULL, run) for replaced, run in ((2, 3), (4, 6), (6, 9))),
)
OFFSET = 4_000_000
"""First step in the stream of scenes. Earlier runs did not use scenes from here on."""


def features(model: ElasticViT, images: Tensor, blocks: int) -> Tensor:
    """All tokens after this number of blocks: (B * N, D)."""
    tokens, identity = model.embed(images), create("none", model)
    for index in range(blocks):
        tokens = model.blocks[index](tokens, identity, index)
    return tokens.x.flatten(0, 1)


def least_squares(spec: StitchSpec, models: dict[str, ElasticViT], images: Tensor) -> nn.Linear:
    """The least-squares map from the features before the stitch to those after it."""
    source = features(models[spec.starts], images, spec.run)
    target = features(models[spec.answers], images, spec.replaced)
    ones = torch.ones(len(source), 1)
    solution = torch.linalg.lstsq(torch.cat([source, ones], 1), target, driver="gelsd").solution
    joint = nn.Linear(source.shape[1], target.shape[1])
    with torch.no_grad():
        joint.weight.copy_(solution[:-1].T)
        joint.bias.copy_(solution[-1])
    return joint


def stitch_loss(
    spec: StitchSpec, models: dict[str, ElasticViT], joint: nn.Linear, batch: SceneBatch
) -> tuple[Tensor, Tensor]:
    """The loss of one stitch under autocast, from the labels and the full model; with its logits (B, C)."""
    images = normalise(batch.images)
    with torch.autocast("cpu", torch.bfloat16):
        full = models[spec.answers]
        logits = Stitch(spec, models[spec.starts], joint, full)(images).logits.float()
        with torch.no_grad():
            target = full(images, ResolvedPlan(create("none", full), full.config.depth)).logits.float()
        loss = F.cross_entropy(logits, batch.labels)
        loss = loss + F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")
    return loss, logits


def train(steps: int, batch_size: int, lr: float, seed: int, zoo: Path) -> None:
    """Write the maps beside the weights of the full model, and a log of the run."""
    torch.manual_seed(seed)
    models = {name: hub.load(name).model.requires_grad_(False) for name in (FULL, LIGHT)}
    stream = batches(OFFSET, batch_size)
    with torch.no_grad():
        images = normalise(next(stream).images)
        joints = {spec: least_squares(spec, models, images) for spec in SPECS}
    modules = nn.ModuleList(joints.values())
    optim = torch.optim.AdamW(modules.parameters(), lr=lr, weight_decay=0.01)
    started, rows = time.monotonic(), []
    for step in range(steps):
        spec, batch = random.Random(seed * 1_000_003 + step).choice(SPECS), next(stream)
        optim.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optim.zero_grad(set_to_none=True)
        loss, logits = stitch_loss(spec, models, joints[spec], batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optim.step()
        top1 = (logits.argmax(1) == batch.labels).float().mean().item()
        minutes = round((time.monotonic() - started) / 60, 2)
        rows.append({"step": step + 1, "minutes": minutes, "stitch": f"{spec.answers}/{spec.replaced}",
                     "loss": round(loss.item(), 4), "top1": round(top1, 4)})  # fmt: skip
        if step % 20 == 0:
            print(rows[-1], flush=True)
    save_stitches(zoo / f"{FULL}.{STITCHES}", joints)
    log = ROOT / "runs/stitches.jsonl"
    log.parent.mkdir(exist_ok=True)
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.steps, args.batch_size, args.lr, args.seed, ZOO)


if __name__ == "__main__":
    main()
