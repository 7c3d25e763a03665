"""The parts of a model that are trained: exit heads, token gates, and the patch readers of a dense head."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.distillation.exit_heads import distillation, heads_of
from foveate.models.distillation.gates import KEEP_RATES, advantage, rollout
from foveate.models.profiling.calibration import calibrate, exit_logits
from foveate.models.reduction import create
from foveate.models.runners.dense import dense_of
from foveate.models.vit.vit import ElasticViT, ResolvedPlan

REDUCED = (1.0, 1.0, 0.7, 0.5, 0.3)
"""Keep rates of EViT under which exit heads are trained, so that they work under token reduction too."""
GATE_KEEP = "0.5"
"""The keep rate at which gates are compared with random patches."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a trained part gives the answer of full, on images that it was not trained on."""

    name: str
    agreement: float
    """0 to 1."""
    baseline: float
    """The same without training."""
    baseline_name: str


class TrainablePart(Protocol):
    """One part of a model, with its loss. All targets are the answers of the model at full."""

    name: str
    lr: float

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    def loss(self, images: Tensor, rng: random.Random) -> Tensor:
        """The loss on normalised images (B, 3, S, S)."""
        ...

    def finish(self, batches: Iterable[Tensor]) -> Sequence[Agreement]:
        """Finish the part with images that it was not trained on, and say how well it does on them."""
        ...


def full_logits(model: ElasticViT, images: Tensor) -> Tensor:
    """The answers of full: (B, C) float32."""
    return answers(model, images, "none")


@torch.no_grad()
def answers(model: ElasticViT, images: Tensor, reducer: str) -> Tensor:
    """The class logits under a reducer: (B, C) float32."""
    plan = ResolvedPlan(create(reducer, model), model.config.depth)
    logits: Tensor = model(images, plan).logits.float()
    return logits


class ExitHeads:
    """All exit heads of a classifier at once, calibrated at the end."""

    name, lr = "exit heads", 1e-3

    def __init__(self, model: ElasticViT) -> None:
        self.model, self.module = model, cast("nn.Module", model.exit_heads)

    def loss(self, images: Tensor, rng: random.Random) -> Tensor:
        """The sum of the heads' losses under a random keep rate."""
        keep = rng.choice(REDUCED) if self.model.config.class_token else 1.0
        inputs, teacher = {}, None
        reducer = create("none" if keep == 1 else f"evit:{keep}", self.model)
        with torch.no_grad():
            tokens = self.model.embed(images)
            for index, block in enumerate(self.model.blocks):
                tokens = block(tokens, reducer, index)
                inputs[index + 1] = tokens
            teacher = self.model.classify(tokens).float() if keep == 1 else full_logits(self.model, images)
        labels = teacher.argmax(1)
        heads = heads_of(self.model).items()
        losses = [distillation(head(inputs[after]).float(), labels, teacher) for after, head in heads]
        return torch.stack(losses).sum()

    def finish(self, batches: Iterable[Tensor]) -> Sequence[Agreement]:
        """Fit the temperatures, and compare each head with the most frequent class."""
        identity, logits = create("none", self.model), dict[int, list[Tensor]]()
        for images in batches:
            for after, part in exit_logits(self.model, images, identity).items():
                logits.setdefault(after, []).append(part)
        joined = {after: torch.cat(parts) for after, parts in logits.items()}
        classes = joined[self.model.config.depth].argmax(1)
        with torch.inference_mode():
            reports = calibrate(self.model, joined, classes)
        baseline = most_frequent(classes)
        return [
            Agreement(f"exit after block {after}", report.top1, baseline, "the most frequent class")
            for after, report in sorted(reports.items())
        ]


class TokenGates:
    """All gates of a classifier at once (IA-RED^2)."""

    name, lr = "token gates", 1e-3

    def __init__(self, model: ElasticViT) -> None:
        self.model, self.module = model, cast("nn.Module", model.gates)

    def loss(self, images: Tensor, rng: random.Random) -> Tensor:
        """The policy gradient at a random keep rate; the class of full is right."""
        keep = rng.choice(KEEP_RATES)
        with torch.no_grad():
            tokens = self.model.embed(images)
            best, _ = rollout(self.model, self.model.gates, tokens, keep, greedy=True)
            classes = full_logits(self.model, images).argmax(1)
        sampled, log_probability = rollout(self.model, self.model.gates, tokens, keep, greedy=False)
        return -(advantage(sampled, best, classes) * log_probability).mean()

    def finish(self, batches: Iterable[Tensor]) -> Sequence[Agreement]:
        """Compare the gates with random patches."""
        equal = dict.fromkeys((f"iared:{GATE_KEEP}", f"random:{GATE_KEEP}"), 0)
        count = 0
        for images in batches:
            classes = full_logits(self.model, images).argmax(1)
            count += len(images)
            for text in equal:
                equal[text] += int((answers(self.model, images, text).argmax(1) == classes).sum())
        gated, drawn = (hits / count for hits in equal.values())
        return [Agreement(f"gates at iared:{GATE_KEEP}", gated, drawn, f"random:{GATE_KEEP}")]


class PatchReaders:
    """The readers of a dense head after the blocks before the last one, from which DToP classifies patches.

    "Dynamic Token Pruning in Plain Vision Transformers for Semantic Segmentation" (ICCV 2023), section 3.2,
    trains an auxiliary head for each stage. Here the reader after the last block, and all that follows it,
    stay as they are, so that the answers of full do not change.
    """

    name, lr = "patch readers", 3e-4

    def __init__(self, model: ElasticViT) -> None:
        self.model, self.head = model, dense_of(model)
        self.module: nn.Module = self.head.readers[:-1]
        self._start = {name: value.clone() for name, value in self.module.state_dict().items()}

    @torch.no_grad()
    def _features(self, images: Tensor) -> list[Tensor]:
        """Patches (B, P, D) after each block."""
        tokens, identity, features = self.model.embed(images), create("none", self.model), []
        for index, block in enumerate(self.model.blocks):
            tokens = block(tokens, identity, index)
            features.append(tokens.x[:, tokens.prefix :])
        return features

    def loss(self, images: Tensor, rng: random.Random) -> Tensor:
        """For each reader, the distance of its features and of its patches' classes from those of full."""
        features, depth = self._features(images), self.model.config.depth
        with torch.no_grad():
            target = self.head.read(features[-1], depth)
            classes = self.head.classify_patches(target).log_softmax(-1).flatten(0, 1)
        losses = []
        for block in range(1, depth):
            read = self.head.read(features[block - 1], block)
            scores = self.head.classify_patches(read).log_softmax(-1).flatten(0, 1)
            losses.append(
                F.mse_loss(read, target) / target.var()
                + F.kl_div(scores, classes, reduction="batchmean", log_target=True)
            )
        return torch.stack(losses).sum()

    def finish(self, batches: Iterable[Tensor]) -> Sequence[Agreement]:
        """Keep each reader that got better, and compare the patches' classes with the most frequent one."""
        images = list(batches)
        trained, classes = self._agreements(images)
        after = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self._start)
        before, _ = self._agreements(images)
        kept = {
            name: after[name]
            if trained[int(name.partition(".")[0])] > before[int(name.partition(".")[0])]
            else value
            for name, value in self._start.items()
        }
        self.module.load_state_dict(kept)
        baseline = most_frequent(classes)
        return [
            Agreement(f"patches after block {block + 1}", max(pair), baseline, "the most frequent class")
            for block, pair in enumerate(zip(trained, before, strict=True))
        ]

    @torch.no_grad()
    def _agreements(self, batches: Sequence[Tensor]) -> tuple[list[float], Tensor]:
        """The share of patches with the class that full gives them, by reader; and these classes."""
        depth = self.model.config.depth
        equal, classes = [0.0] * (depth - 1), []
        for images in batches:
            features = self._features(images)
            full = self.head.classify_patches(self.head.read(features[-1], depth)).argmax(-1)
            classes.append(full.flatten())
            for block in range(1, depth):
                scores = self.head.classify_patches(self.head.read(features[block - 1], block))
                equal[block - 1] += float((scores.argmax(-1) == full).sum())
        joined = torch.cat(classes)
        return [hits / len(joined) for hits in equal], joined


def most_frequent(classes: Tensor) -> float:
    """The share of the most frequent class among classes (N,)."""
    return float(classes.bincount().max() / len(classes))
