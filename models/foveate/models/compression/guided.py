"""Recoverable Compression: keep salient patches, recover what the question needs, merge the rest.

"Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information" (arXiv
2409.01179), section 3. Its dynamic numbers of tokens are fixed shares here, so that a plan has one cost. A
patch's similarity to the question is FILIP's, of single patches and words: "FILIP: Fine-grained Interactive
Language-Image Pre-Training" (arXiv 2111.07783), equations 4 and 5. The rest is merged by the density of its
neighbourhoods: "Study on density peaks clustering based on k-nearest neighbors and principal component
analysis" (2016).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.visual_tokens import (
    Compression,
    CompressionContext,
    PatchVectors,
    QuestionTokens,
    VisualAssignment,
    clusters,
    token_count,
    usual_counts,
)

EXAMPLES: tuple[str | None, ...] = ("36", "16", "5", "2", "1")
"""Arguments the contract tests use; the first is the identity of 36 patches."""

SALIENT, MERGED = 0.125, 0.5
"""Shares of the visual tokens that are salient patches, and means of merged patches, rounded down. The others
are the patches recovered for the question. In drawn scenes of several objects, 16 tokens so divided have one
that is mostly the object asked for in 0.89 of the cases, and mostly another object in 0.81; with a quarter
salient and a quarter merged it is 0.84 and 0.75."""
NEIGHBOURS = 5
"""Nearest patches that decide how dense a patch's neighbourhood is."""


@dataclass(frozen=True, slots=True)
class GuidedCompression(Compression):
    """Keeps `salient` and `recovered` patches as they are, and merges all others into `merged` tokens."""

    count: int
    grid: tuple[int, int]
    salient: int
    recovered: int
    merged: int
    needs_question = True

    def macs(self, width: int, question: int) -> float:
        """Similarities of patches to the question's tokens, and of the patches to merge to each other."""
        patches = self.grid[0] * self.grid[1]
        rest = patches - self.salient - self.recovered if self.merged else 0
        return float((patches * question + rest**2) * width + 2 * self.count * patches)

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """The tokens in the order of their patches; a merged one is where the centre of its cluster is.

        A picture without a question gets the next salient patches for the recovered ones. Raises ValueError
        if no question is given at all.
        """
        if patches.question is None:
            raise ValueError("guided compression needs the question")
        positions = patches.positions(self.grid)
        vectors, salience = patches.vectors.float(), patches.salience.float()
        first = ranked(salience)[:, : self.salient]
        need = question_similarity(vectors, patches.question, salience).scatter(1, first, -torch.inf)
        order = ranked(need)
        kept = torch.cat([first, order[:, : self.recovered]], dim=1)
        # The salient patches, which have no rank, are the last of the order.
        rest = order[:, self.recovered : order.shape[1] - self.salient].sort(1).values
        owners = torch.full_like(order, -1).scatter(1, kept, kept)
        if self.merged:
            members = vectors.gather(1, rest.unsqueeze(2).expand(-1, -1, vectors.shape[2]))
            owners = owners.scatter(1, rest, rest.gather(1, density_clusters(members, self.merged)))
        return clusters(owners, self.count, positions)


def ranked(scores: Tensor) -> Tensor:
    """Patches (B, P) int64 by falling score; among equals, the earlier patch first."""
    return scores.argsort(dim=1, descending=True, stable=True)


def question_similarity(vectors: Tensor, question: QuestionTokens, without: Tensor) -> Tensor:
    """How similar each patch is to the token of the question nearest to it: (B, P) float32.

    FILIP, equations 4 and 5, before the mean over patches. A token that is equally similar to all patches
    says nothing about where to look: so its mean similarity to the patches is subtracted first.
    vectors: (B, P, D) float32. without: (B, P), the scores of a picture without a question.
    """
    words = F.normalize(question.embeddings.float(), dim=2)
    similarity = torch.matmul(F.normalize(vectors, dim=2), words.transpose(1, 2))
    similarity = similarity - similarity.mean(1, keepdim=True)
    nearest = similarity.masked_fill(~question.mask.unsqueeze(1), -torch.inf)
    nearest = F.pad(nearest, (0, 1), value=-torch.inf).amax(2)  # a question of no length has no maximum
    return torch.where(question.mask.any(1, keepdim=True), nearest, without)


def density_clusters(vectors: Tensor, count: int) -> Tensor:
    """The centre of the cluster that each vector belongs to: (B, R, D) float32 to (B, R) int64.

    A centre has a dense neighbourhood and is far from all denser vectors. Vectors are compared by their
    direction. Among equally dense ones, the earlier counts as denser.
    """
    unit = F.normalize(vectors, dim=2)
    squared = (2 - 2 * torch.matmul(unit, unit.transpose(1, 2))).clamp(min=0)
    length = squared.shape[1]
    near = squared.topk(min(NEIGHBOURS + 1, length), dim=2, largest=False).values[:, :, 1:]
    density = (-near.mean(2)).exp() if near.shape[2] else torch.ones_like(squared[:, :, 0])
    rank = ranked(density).argsort(dim=1)
    denser = rank.unsqueeze(1) < rank.unsqueeze(2)
    farthest = squared.amax(2)
    separation = squared.masked_fill(~denser, torch.inf).amin(2)
    separation = torch.where(separation.isinf(), farthest, separation)
    centres = ranked(density * separation)[:, :count]
    nearest = squared.gather(2, centres.unsqueeze(1).expand(-1, length, -1)).argmin(2)
    return centres.gather(1, nearest).scatter(1, centres, centres)


def candidates(context: CompressionContext) -> Sequence[str]:
    """Arguments to measure on this model."""
    return usual_counts(context)


def build(argument: str | None, context: CompressionContext) -> GuidedCompression:
    """`guided:16` keeps 2 salient patches and 6 that the question needs, and merges the rest into 8 tokens.

    Raises BadPlan for another argument.
    """
    count = token_count("guided", argument, context)
    salient, merged = int(SALIENT * count), int(MERGED * count)
    return GuidedCompression(count, context.grid, salient, count - salient - merged, merged)
