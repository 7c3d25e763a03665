"""Train the gate of a dense head: `python -m training.depth_gate --model vit-t`, once the head is done.

Each scene is read after every depth that the gate knows, and what each reading is worth is noted; the gate
then learns to foretell that from the first blocks.
"""

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.heads.dense import DenseHead, DenseSpec, DepthGate
from foveate.models.reduction.none import Identity
from foveate.models.runners.dense import dense_of
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights import hub
from training.emoji import LABELS
from training.losses import normalise
from training.segment import OFFSET, Batch, batches, settled, walk

HIDDEN = 64
EPOCHS = 60


@torch.inference_mode()
def worth(model: ElasticViT, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the gate sees of each scene (B, P, W), and the quality (B, N) of its mask at each depth."""
    head = dense_of(model)
    gate = gate_of(head)
    with torch.autocast("cpu", torch.bfloat16):
        images = normalise(batch.images)
        steps = walk(model, images, ResolvedPlan(Identity(), model.config.depth))
        detail = head.detail(images)
        canvases = [settled(head, steps, depth) for depth in (gate.after, *gate.depths)]
        masks = [head.decode(canvas, detail).float() for canvas in canvases[1:]]
    size = batch.classes.shape[-2:]
    named = [F.interpolate(m, size=size, mode="bilinear").argmax(1) for m in masks]
    return canvases[0].float(), torch.stack([overlap(one, batch.classes.long()) for one in named], 1)


def gate_of(head: DenseHead) -> DepthGate:
    if head.gate is None:
        raise ValueError("this head has no gate")
    return head.gate


def overlap(mask: Tensor, truth: Tensor) -> Tensor:
    """Mean over the objects that a scene shows of intersection over union, (B,)."""
    found = []
    for one, other in zip(mask, truth, strict=True):
        shown = [label for label in other.unique().tolist() if label]
        shares = [((one == k) & (other == k)).sum() / ((one == k) | (other == k)).sum() for k in shown]
        found.append(torch.stack(shares).mean() if shares else torch.tensor(1.0))
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit-t", help="the trunk")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--steps", type=int, default=110, help="batches of 32 scenes to learn from")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = hub.load(args.model).model.eval().requires_grad_(False)
    head = DenseHead(model.config, DenseSpec(len(LABELS) + 1, gate=HIDDEN))
    run = args.runs / f"{args.model}-seg"
    trained = torch.load(run / "dense.pt", weights_only=True)["head"]
    head.load_state_dict(trained | {f"gate.{k}": v for k, v in gate_of(head).state_dict().items()})
    model.dense = head.eval()
    seen, quality = [], []
    stream = batches(2 * OFFSET, 32)
    for step in range(args.steps):
        canvas, found = worth(model, next(stream))
        seen.append(canvas)
        quality.append(found)
        if step % 10 == 9:
            print(step + 1, torch.cat(quality).mean(0).tolist(), flush=True)
    canvas, wanted = torch.cat(seen), torch.cat(quality)
    learn(gate_of(head), canvas, wanted)
    torch.save(gate_of(head).state_dict(), run / "gate.pt")


def learn(gate: DepthGate, canvas: Tensor, wanted: Tensor) -> None:
    """Least squares, as long as it helps on a tenth that is kept apart."""
    apart = len(canvas) // 10
    optim = torch.optim.AdamW(gate.parameters(), lr=1e-3, weight_decay=0.05)
    best, state = float("inf"), gate.state_dict()
    for epoch in range(EPOCHS):
        gate.train()
        for rows in torch.split(torch.randperm(len(canvas) - apart), 64):
            optim.zero_grad()
            F.mse_loss(gate(canvas[rows]), wanted[rows]).backward()  # type: ignore[no-untyped-call]
            optim.step()
        gate.eval()
        with torch.inference_mode():
            error = float(F.mse_loss(gate(canvas[-apart:]), wanted[-apart:]))
        if error < best:
            best, state = error, copy.deepcopy(gate.state_dict())
            print(epoch + 1, "error", round(error, 5), flush=True)
    gate.load_state_dict(state)
    tell(gate, canvas[-apart:], wanted[-apart:])


@torch.inference_mode()
def tell(gate: DepthGate, canvas: Tensor, wanted: Tensor) -> None:
    """What the gate is worth beside going equally deep with every picture."""
    for depth, quality in zip(gate.depths, wanted.mean(0).tolist(), strict=True):
        print(f"all at depth {depth}: quality {quality:.4f}")
    for price in (0.02, 0.05, 0.1, 0.2):
        depths = gate.choose(canvas, price, gate.depths[-1])
        at = torch.tensor([gate.depths.index(depth) for depth in depths.tolist()])
        kept = wanted.gather(1, at.unsqueeze(1)).mean()
        print(f"at a price of {price}: mean depth {depths.float().mean():.2f}, quality {kept:.4f}")


if __name__ == "__main__":
    main()
