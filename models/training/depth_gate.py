"""Train the depth gate of a finished dense head: `python -m training.depth_gate --model vit-t`.

It first measures the quality of each scene's mask at every depth of the gate. The gate then learns to predict
these qualities from the features of the first blocks.
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
from training.images import normalise
from training.labels import LABELS
from training.segment import OFFSET, MaskBatch, batches, block_outputs, patch_features

HIDDEN = 64
"""Width of the gate."""
EPOCHS = 60


@torch.inference_mode()
def mask_qualities(model: ElasticViT, batch: MaskBatch) -> tuple[Tensor, Tensor]:
    """The gate's input features (B, P, W), and the quality (B, N) of each scene's mask at each depth."""
    head = dense_of(model)
    gate = gate_of(head)
    with torch.autocast("cpu", torch.bfloat16):
        images = normalise(batch.images)
        outputs = block_outputs(model, images, ResolvedPlan(Identity(), model.config.depth))
        detail = head.detail(images)
        features = [patch_features(head, outputs, depth) for depth in (gate.after, *gate.depths)]
        scores = [head.decode(by_depth, detail).float() for by_depth in features[1:]]
    size = batch.classes.shape[-2:]
    masks = [F.interpolate(s, size=size, mode="bilinear").argmax(1) for s in scores]
    return features[0].float(), torch.stack([scene_iou(mask, batch.classes.long()) for mask in masks], 1)


def gate_of(head: DenseHead) -> DepthGate:
    """The gate of a head. Raises ValueError if it has none."""
    if head.gate is None:
        raise ValueError("this head has no gate")
    return head.gate


def scene_iou(masks: Tensor, truths: Tensor) -> Tensor:
    """Intersection over union of each scene, averaged over its objects: (B, H, W) twice to (B,)."""
    means = []
    for mask, truth in zip(masks, truths, strict=True):
        labels = [label for label in truth.unique().tolist() if label]
        ious = [((mask == k) & (truth == k)).sum() / ((mask == k) | (truth == k)).sum() for k in labels]
        means.append(torch.stack(ious).mean() if ious else torch.tensor(1.0))
    return torch.stack(means)


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
    features, quality = [], []
    stream = batches(2 * OFFSET, 32)
    for step in range(args.steps):
        batch_features, batch_quality = mask_qualities(model, next(stream))
        features.append(batch_features)
        quality.append(batch_quality)
        if step % 10 == 9:
            print(step + 1, torch.cat(quality).mean(0).tolist(), flush=True)
    fit_gate(gate_of(head), torch.cat(features), torch.cat(quality))
    torch.save(gate_of(head).state_dict(), run / "gate.pt")


def fit_gate(gate: DepthGate, features: Tensor, quality: Tensor) -> None:
    """Least squares from features (N, P, W) to qualities (N, D).

    The last tenth is the validation set; the gate gets the weights of the epoch with its lowest error.
    """
    validation = len(features) // 10
    optim = torch.optim.AdamW(gate.parameters(), lr=1e-3, weight_decay=0.05)
    best, state = float("inf"), gate.state_dict()
    for epoch in range(EPOCHS):
        gate.train()
        for rows in torch.split(torch.randperm(len(features) - validation), 64):
            optim.zero_grad()
            F.mse_loss(gate(features[rows]), quality[rows]).backward()  # type: ignore[no-untyped-call]
            optim.step()
        gate.eval()
        with torch.inference_mode():
            error = float(F.mse_loss(gate(features[-validation:]), quality[-validation:]))
        if error < best:
            best, state = error, copy.deepcopy(gate.state_dict())
            print(epoch + 1, "error", round(error, 5), flush=True)
    gate.load_state_dict(state)
    print_comparison(gate, features[-validation:], quality[-validation:])


@torch.inference_mode()
def print_comparison(gate: DepthGate, features: Tensor, quality: Tensor) -> None:
    """Print the quality at each fixed depth, and at the depths that the gate chooses for some costs."""
    for depth, mean in zip(gate.depths, quality.mean(0).tolist(), strict=True):
        print(f"all at depth {depth}: quality {mean:.4f}")
    for cost in (0.02, 0.05, 0.1, 0.2):
        depths = gate.choose(features, cost, gate.depths[-1])
        index = torch.tensor([gate.depths.index(depth) for depth in depths.tolist()])
        chosen = quality.gather(1, index.unsqueeze(1)).mean()
        print(f"at a cost of {cost}: mean depth {depths.float().mean():.2f}, quality {chosen:.4f}")


if __name__ == "__main__":
    main()
