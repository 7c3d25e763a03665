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
from training.chat_cache import IMAGE_SIDES, SceneCache, read_cache
from training.chat_targets import PatchTargets, cell_shares, patch_rows, patch_targets
from training.chat_trunk import BACKGROUND, BACKGROUND_WEIGHT
from training.fit import TrainingRun, fit
from training.labels import LABELS
from training.multi_scenes import PATCH, SIDE, TINTS
from training.questions import KINDS, Question, one_of_each, spoken
from training.streams import prefetched

FEATURES = 2 * 192
ALIGNMENT = 0.5
"""The weight of the alignment loss."""
QUERY_STD = 0.05
"""Of queries and keys, which start equal: like attends to like."""
CHECKED_SIDES = (7, 4)
"""Rows of the grids that the checks measure beside full."""
SMALL_CHECKED_SIDES = (10, 4)
"""The same for the smaller images, full first."""


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
        """Visual tokens (B, K, D) of patch features (B, P, F), those of a square image.

        One of grid (rows and columns of cells) and selected (single patches) is given.
        """
        rows = patch_rows(features.shape[1])
        places = grid_positions(rows, rows)
        projector = self.model.projector
        if selected is not None:
            patches = projector.patches(
                features.gather(1, selected[..., None].expand(-1, -1, features.shape[2])), places[selected]
            )
            return projector.tokens(patches, torch.eye(selected.shape[1]), places[selected])
        if grid is None:
            raise ValueError("visual tokens are those of a grid or of selected patches")
        weights = cell_weights(*grid, rows, rows)
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
def exact_match(
    training: ChatTraining, check: Check, grid: tuple[int, int] | None, side: int = SIDE
) -> dict[str, float]:
    """The share of answers that are right to the last token, by kind.

    grid: None without a picture. side: of the images, in pixels.

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
                features = check.scenes.batch(range(first, first + len(rows)), side)
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
    """The figures to log: exact match of each kind at full; the mean at fewer tokens and smaller images."""

    def checks() -> dict[str, float]:
        if training.blind:
            return exact_match(training, check, None)
        figures = exact_match(training, check, (SIDE // PATCH, SIDE // PATCH))
        for rows in CHECKED_SIDES:
            figures[f"mean_{rows * rows}"] = exact_match(training, check, (rows, rows))["mean"]
        small = min(IMAGE_SIDES)
        for rows in SMALL_CHECKED_SIDES:
            name = f"mean_{small}" if rows * PATCH == small else f"mean_{small}_{rows * rows}"
            figures[name] = exact_match(training, check, (rows, rows), small)["mean"]
        return figures

    return checks


def load_start(training: ChatTraining, start: Path, folder: Path) -> None:
    """Start from the weights of another run's chat.pt. folder: that of the new run.

    Raises SystemExit if the two runs have different tokenizers.
    """
    theirs, own = (where / "tokenizer.json" for where in (start.parent, folder))
    if theirs.exists() and theirs.read_bytes() != own.read_bytes():
        raise SystemExit(f"the weights of {start} belong to {theirs}: copy it to {own}")
    training.load_state_dict(torch.load(start, weights_only=True)["head"])


def train(run: TrainingRun, batch_size: int, warmup: int, blind: bool, start: Path | None = None) -> None:
    """Train or resume. The run's folder gets the weights and a log.

    start: CHAT.pt of another run, whose weights to start from; a resumed run has its own.
    """
    torch.manual_seed(run.seed)
    tokenizer = ChatTokenizer.from_file(run.folder / "tokenizer.json")
    training = ChatTraining(tokenizer, blind)
    if start is not None:
        load_start(training, start, run.folder)
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
        return training.loss(batch, patch_targets(scenes, batch.numbers, batch.side))

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
    parser.add_argument("--start", type=Path, help="CHAT.pt of another run, whose weights to start from")
    parser.add_argument("--blind", action="store_true", help="the baseline: train without pictures")
    parser.add_argument("--name", help="of the files of the run; default: chat, or chat-blind")
    args = parser.parse_args()
    name = args.name or ("chat-blind" if args.blind else "chat")
    run = TrainingRun(args.run, name, args.steps, args.lr, args.seed, check_every=args.check_every)
    train(run, args.batch_size, args.warmup, args.blind, args.start)


if __name__ == "__main__":
    main()
