"""From the features of pictures to the visual tokens that a plan makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.models.layers.cells import grid_positions
from foveate.models.layers.visual_tokens import Compression, PatchVectors, QuestionTokens, VisualAssignment
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.projector import PatchStates
from foveate.models.vlm.tokenizer import IMAGE
from foveate.models.vlm.unmerging import unmerging_mask


@dataclass(frozen=True, slots=True)
class PictureFeatures:
    """The features of one picture. Every question about it and every method of the same size can use them."""

    patches: Tensor
    """(P, F), row by row."""
    groups: Tensor | None
    """(P,) int64: equal numbers mark patches that the tower has merged. None: it has merged none."""
    side: int
    """Rows, and columns, of patches."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.patches.nbytes + (0 if self.groups is None else self.groups.nbytes)


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """The visual tokens of one picture, and what they are made of."""

    tokens: Tensor
    """(K, D)."""
    weights: Tensor
    """(K, P) float32: the share of each patch in each token, which the projector then weighs by salience."""
    positions: Tensor
    """(K, 2) float32: x and y of each token, 0 to 1."""
    unmerges: bool = False
    """Whether the decoder attends to each token as to the patches that it stands for."""

    def __len__(self) -> int:
        return len(self.tokens)


@torch.inference_mode()
def visual_tokens(
    model: VisionLanguageModel,
    pictures: Sequence[PictureFeatures],
    method: Compression,
    questions: Sequence[Sequence[int]],
) -> list[VisualTokens]:
    """The visual tokens of pictures of the same size, each with the tokens of its question.

    Raises ValueError for pictures of another size than the method takes.
    """
    side = pictures[0].side
    device = model.embeddings.device
    features = torch.stack([picture.patches for picture in pictures]).to(device, model.embeddings.dtype)
    states = model.projector.patches(features, grid_positions(side, side).to(device))
    has_singles = method.selects or method.needs_vectors
    alone = model.projector.each(states) if has_singles else states.hidden
    groups = [picture.groups for picture in pictures if picture.groups is not None]
    patches = PatchVectors(
        alone,
        states.salience.mean(-1),
        (side, side),
        question_tokens(model, questions) if method.needs_question else None,
        torch.stack(groups).to(device) if len(groups) == len(pictures) else None,
    )
    assignment = method(patches)
    tokens = _apply(model, states, alone, assignment)
    count, _, _ = features.shape
    weights = assignment.weights.expand(count, -1, -1)
    positions = assignment.positions.expand(count, -1, -1)
    return [VisualTokens(*row, method.unmerges) for row in zip(tokens, weights, positions, strict=True)]


def prompt_mask(ids: Sequence[int], visual: Sequence[VisualTokens]) -> Tensor | None:
    """What is added to the attention scores among the tokens of a prompt: (L, L) float32.

    ids: as of `build_prompt`. None: the causal mask.
    """
    if not any(each.unmerges for each in visual):
        return None
    length = len(ids) + sum(len(each) - 1 for each in visual)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=visual[0].weights.device).tril()
    places = [place for place, token in enumerate(ids) if token == IMAGE]
    before = 0
    for place, each in zip(places, visual, strict=True):
        if each.unmerges:
            mask = unmerging_mask(mask, VisualAssignment(each.weights, each.positions), place + before)
        before += len(each) - 1
    return mask[0, 0]


def question_tokens(model: VisionLanguageModel, questions: Sequence[Sequence[int]]) -> QuestionTokens:
    """The embeddings of questions, padded to the longest."""
    longest = max(map(len, questions))
    ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in questions], dtype=torch.int64)
    lengths = torch.tensor([len(ids) for ids in questions])
    device = model.embeddings.device
    mask = torch.arange(longest) < lengths[:, None]
    return QuestionTokens(model.embed(ids.to(device)), mask.to(device))


def _apply(
    model: VisionLanguageModel, states: PatchStates, alone: Tensor, assignment: VisualAssignment
) -> Tensor:
    """The visual tokens (B, K, D) of an assignment. alone: (B, P, D), those of single patches, to select."""
    if assignment.kept is None:
        return model.projector.tokens(states, assignment.weights, assignment.positions)
    return assignment.apply(alone)
