"""Train vit-t-chat's projector and decoder: `python -m training.chat`.

The same command resumes. Before it: training.chat_trunk, chat_cache and chat_tokenizer. The log has the exact
match of each kind of question on held-out scenes and wordings. `--blind` trains the same decoder without
pictures, with a log of its own: the baseline.

AdamW alone stays on the plateau of the blind model. Muon on the matrices of decoder and projector, queries
and keys that start equal, an alignment loss and easy questions on small grids first lead off it.
"""

import argparse
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers.cells import cell_weights, grid_positions
from foveate.models.vlm.decoder import DecoderSpec
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.projector import ProjectorSpec
from foveate.models.vlm.tokenizer import USER, ChatTokenizer
from training.chat_batches import BatchStream, ChatBatch, PackedTexts, attention_mask, pack
from training.chat_cache import SceneCache, read_cache
from training.chat_trunk import BACKGROUND, BACKGROUND_WEIGHT, GRID, TINT_NUMBERS
from training.fit import TrainingRun, fit
from training.labels import LABELS
from training.multi_scenes import NOTHING, TINTS
from training.questions import KINDS, Question, one_of_each, spoken
from training.streams import prefetched

FEATURES = 2 * 192
ALIGNMENT = 0.5
"""The weight of the alignment loss."""
QUERY_STD = 0.05
"""Of queries and keys, which start equal: like attends to like."""
CHECKED_SIDES = (14, 7, 4)


def new_model(vocabulary: int) -> VisionLanguageModel:
    """The model with its initial weights."""
    decoder = DecoderSpec(vocabulary, 256, 576, 4, 4, 4096)
    model = VisionLanguageModel(ProjectorSpec(FEATURES, 512, decoder.hidden_size, 8), decoder)
    layers = model.decoder.model.layers
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    nn.init.normal_(model.projector.up.weight, std=0.04)
    nn.init.zeros_(model.projector.salience.weight)
    nn.init.normal_(model.projector.where.weight, std=0.15)
    for layer in layers:
        nn.init.normal_(layer.self_attn.q_proj.weight, std=QUERY_STD)
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            nn.init.normal_(matrix.weight, std=0.02 / math.sqrt(2 * len(layers)))
    return model


@dataclass(frozen=True, slots=True)
class PatchTargets:
    """What each patch shows; -100 marks a patch that takes no part."""

    classes: Tensor
    """(B, 196) int64: the class of the object that covers it, or BACKGROUND."""
    tints: Tensor
    """(B, 196) int64: the number of the colour of a recoloured object."""


class ChatTraining(nn.Module):
    """The model with what only the training needs: the alignment of visual tokens with words."""

    def __init__(self, tokenizer: ChatTokenizer, blind: bool) -> None:
        super().__init__()
        self.model = new_model(len(tokenizer))
        self.background = nn.Parameter(torch.randn(256) * 0.02)
        """Stands for the words of a patch without an object."""
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.blind = blind
        self.names = [torch.tensor(tokenizer.encode(spoken(label))) for label in range(len(LABELS))]
        self.colours = [torch.tensor(tokenizer.encode(tint)) for tint in TINTS]

    def optimisers(self, lr: float) -> list[torch.optim.Optimizer]:
        """Muon for the matrices, at twice the learning rate; AdamW for embeddings, norms and biases."""
        projector = self.model.projector
        matrices = [p for p in self.model.decoder.model.layers.parameters() if p.ndim == 2]
        matrices += [projector.up.weight, projector.out.weight]
        known = {id(p) for p in matrices}
        others = [p for p in self.parameters() if id(p) not in known]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        muon = torch.optim.Muon(
            [{"params": matrices, "lr_scale": 2.0}],
            lr=lr,
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",
            ns_steps=3,
        )
        return [muon, torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)]

    def visual(self, features: Tensor, grid: tuple[int, int] | None, selected: Tensor | None) -> Tensor:
        """Visual tokens (B, K, D) of patch features (B, 196, F).

        One of grid (rows and columns of cells) and selected (single patches) is given.
        """
        places = grid_positions(GRID, GRID)
        projector = self.model.projector
        if selected is not None:
            patches = projector.patches(
                features.gather(1, selected[..., None].expand(-1, -1, features.shape[2])), places[selected]
            )
            return projector.tokens(patches, torch.eye(selected.shape[1]), places[selected])
        if grid is None:
            raise ValueError("visual tokens are those of a grid or of selected patches")
        weights = cell_weights(*grid, GRID, GRID)
        return projector.tokens(projector.patches(features, places), weights, grid_positions(*grid))

    def hidden(
        self, visual: Tensor | None, system: Sequence[int], text: PackedTexts, pictures: int = 1
    ) -> Tensor:
        """The hidden states of the text (B, T, D) behind the system prompt and the visual tokens.

        visual: (B * pictures, K, D). The tokens of one picture share one position.
        """
        rows = len(text.ids)
        ids = torch.cat([torch.tensor([*system, USER]).expand(rows, -1), text.ids], 1)
        embedded = self.model.embed(ids)
        lead = len(system) + 1
        positions = torch.cat([torch.arange(lead).expand(rows, -1), text.positions], 1)
        count = 0
        if visual is not None:
            count = visual.shape[1] * pictures
            visual = visual.reshape(rows, count, -1).to(embedded.dtype)
            embedded = torch.cat([embedded[:, :lead], visual, embedded[:, lead:]], 1)
            places = torch.arange(lead, lead + pictures).repeat_interleave(count // pictures)
            positions = torch.cat([positions[:, :lead], places.expand(rows, -1), positions[:, lead:]], 1)
        mask = attention_mask(lead + count, text.segments)
        return self.model.hidden(embedded, positions, mask)[:, lead + count :]

    def loss(self, batch: ChatBatch, targets: PatchTargets) -> Tensor:
        """The weighted cross-entropy of answers, with the alignment loss."""
        visual = None
        if not self.blind:
            visual = self.visual(batch.features.bfloat16(), batch.grid, batch.selected)
        hidden = self.hidden(visual, batch.system, batch.text, batch.pictures)
        answered = batch.text.targets >= 0
        logits = self.model.logits(hidden[answered]).float()
        weights = batch.text.weights[answered]
        loss = (F.cross_entropy(logits, batch.text.targets[answered], reduction="none") * weights).sum()
        loss = loss / weights.sum()
        if visual is None:
            return loss
        classes = cell_shares(targets.classes, BACKGROUND + 1, batch.grid, batch.selected)
        tints = cell_shares(targets.tints, len(TINTS), batch.grid, batch.selected)
        weights = torch.where(classes[..., BACKGROUND] > 0, BACKGROUND_WEIGHT, 1.0)
        named = self.alignment(visual, self.names, self.background, classes, weights)
        coloured = self.alignment(visual, self.colours, None, tints, torch.ones_like(weights))
        return loss + ALIGNMENT * (named + coloured)

    def alignment(
        self,
        visual: Tensor,
        words: Sequence[Tensor],
        nothing: Tensor | None,
        shares: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """The cross-entropy between visual tokens and the words of what they hold.

        visual: (B, K, D). words: the tokens of each of C words. nothing: (D,), a prototype beside theirs.
        shares: (B, K, C), or (B, K, C + 1) with `nothing`; all 0 for a token that takes no part.
        weights: (B, K).
        """
        prototypes = torch.stack([self.model.embeddings[ids].mean(0) for ids in words])
        if nothing is not None:
            prototypes = torch.cat([prototypes, nothing[None]])
        similarity = F.normalize(visual.float(), dim=-1) @ F.normalize(prototypes, dim=-1).T
        log_shares = (similarity * self.scale.exp()).log_softmax(-1)
        weights = weights * (shares.sum(-1) > 0)
        return -((shares * log_shares).sum(-1) * weights).sum() / weights.sum().clamp(min=1)


def cell_shares(targets: Tensor, count: int, grid: tuple[int, int] | None, selected: Tensor | None) -> Tensor:
    """What the patches (B, 196) of each visual token show, in equal shares: (B, K, count) float32.

    A cell shows BACKGROUND only where all of its patches do.
    """
    shown = F.one_hot(targets.clamp(min=0), count).float() * (targets >= 0)[..., None]
    if selected is not None:
        return shown.gather(1, selected[..., None].expand(-1, -1, count))
    if grid is None:
        raise ValueError("visual tokens are those of a grid or of selected patches")
    inside = (cell_weights(*grid, GRID, GRID) > 0).float()
    held = (inside @ shown > 0).float()
    if count > BACKGROUND:
        held[..., BACKGROUND] = (inside @ (targets != BACKGROUND).float()[..., None])[..., 0] == 0
    return held / held.sum(-1, keepdim=True).clamp(min=1)


def patch_targets(scenes: SceneCache, numbers: Sequence[int]) -> PatchTargets:
    """The targets of scenes. Patches that an object covers in part take no part."""
    classes = np.full((len(numbers), GRID * GRID), -100)
    tints = np.full_like(classes, -100)
    for row, number in enumerate(numbers):
        owners = scenes.owners[number]
        classes[row, owners == NOTHING] = BACKGROUND
        for index, item in enumerate(scenes.graphs[number]):
            classes[row, owners == index] = item.label
            if item.tint is not None:
                tints[row, owners == index] = TINT_NUMBERS[item.tint]
    return PatchTargets(torch.from_numpy(classes), torch.from_numpy(tints))


@dataclass(frozen=True, slots=True)
class Check:
    """Held-out scenes with a question of each kind, in held-out wordings."""

    scenes: SceneCache
    questions: list[list[Question]]
    tokenizer: ChatTokenizer


def held_out_check(folder: Path, tokenizer: ChatTokenizer, count: int = 300) -> Check:
    """The check on the first scenes of the cache's held-out split."""
    scenes = read_cache("heldout", folder)
    questions = [one_of_each(scenes.graphs[i], random.Random(i), "heldout") for i in range(count)]
    return Check(scenes, questions, tokenizer)


@torch.inference_mode()
def exact_match(training: ChatTraining, check: Check, grid: tuple[int, int] | None) -> dict[str, float]:
    """The share of answers that are right to the last token, by kind. grid: None without a picture.

    A token is predicted behind the right ones before: the answer that comes out so is right exactly where
    the greedy one is.
    """
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for first in range(0, len(check.questions), 50):
        rows = check.questions[first : first + 50]
        # Without a picture too, the position of one stays free, as in the batches of the training.
        text = pack(rows, check.tokenizer, 2)
        with torch.autocast("cpu", torch.bfloat16):
            visual = None
            if grid is not None:
                features = check.scenes.batch(range(first, first + len(rows)))
                visual = training.visual(features.bfloat16(), grid, None)
            hidden = training.hidden(visual, (), text)
            predicted = training.model.logits(hidden).argmax(-1)
        wrong = (predicted != text.targets) & (text.targets >= 0)
        for row, questions in enumerate(rows):
            for number, question in enumerate(questions):
                right[question.kind].append(not bool(wrong[row][text.segments[row] == number].any()))
    scores = {kind: float(np.mean(values)) for kind, values in right.items()}
    return scores | {"mean": float(np.mean(list(scores.values())))}


def checks_of(training: ChatTraining, check: Check) -> Callable[[], dict[str, float]]:
    """The figures to log: exact match of each kind at full, and the mean at fewer tokens."""

    def checks() -> dict[str, float]:
        if training.blind:
            return exact_match(training, check, None)
        figures = exact_match(training, check, (GRID, GRID))
        for side in CHECKED_SIDES[1:]:
            figures[f"mean_{side * side}"] = exact_match(training, check, (side, side))["mean"]
        return figures

    return checks


def train(run: TrainingRun, batch_size: int, warmup: int, blind: bool) -> None:
    """Train or resume. The run's folder gets the weights and a log."""
    torch.manual_seed(run.seed)
    tokenizer = ChatTokenizer.from_file(run.folder / "tokenizer.json")
    training = ChatTraining(tokenizer, blind)
    cache = run.folder / "cache"
    scenes = read_cache("train", cache)
    check = held_out_check(cache, tokenizer)
    draw = BatchStream(run.folder, batch_size, 1 if blind else warmup, run.seed)
    stream: Iterator[ChatBatch] | None = None

    def loss_at(step: int, _: random.Random) -> Tensor:
        nonlocal stream
        if stream is None:
            stream = prefetched(step, draw)
        batch = next(stream)
        return training.loss(batch, patch_targets(scenes, batch.numbers))

    fit(run, training, loss_at, checks_of(training, check), training.optimisers(run.lr))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/vit-t-chat"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument(
        "--warmup", type=int, default=2000, help="steps until all kinds of questions take part"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures, each with eight questions")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--check-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action="store_true", help="the baseline: train without pictures")
    parser.add_argument("--name", help="of the files of the run; default: chat, or chat-blind")
    args = parser.parse_args()
    name = args.name or ("chat-blind" if args.blind else "chat")
    run = TrainingRun(args.run, name, args.steps, args.lr, args.seed, check_every=args.check_every)
    train(run, args.batch_size, args.warmup, args.blind)


if __name__ == "__main__":
    main()
