"""Draw which patches of pictures the visual tokens of a language model stand for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveate.core.outcome import PatchState, ReductionStage
from foveate.models.profiling import explain_picture
from foveate.models.profiling.explain_picture import Pixels
from foveate.models.vlm.visual_tokens import VisualTokens

PATCH_STATES: tuple[PatchState, ...] = ("kept", "merged", "dropped")


@dataclass(frozen=True, slots=True)
class TokenGroups(ReductionStage):
    """The visual tokens of one picture, where a mean may be the group of a single patch."""

    states: tuple[PatchState, ...]
    """Of each patch: a visual token of its own, in a mean with others, or without a token."""

    @property
    def patch_states(self) -> tuple[PatchState, ...]:
        """The states."""
        return self.states


def token_groups(visual: VisualTokens) -> TokenGroups:
    """For each patch, the visual token that stands for it.

    Cells of `pool` may share patches: such a patch counts for the first token of those in which its share is
    largest. A cell can so be left with one patch, which is in its mean nonetheless.
    """
    weights = visual.weights.float().cpu().numpy()
    owners = np.where(weights.max(0) > 0, weights.argmax(0), -1)
    first = {owner: patch for patch, owner in reversed([*enumerate(owners.tolist())])}
    groups = tuple(-1 if owner < 0 else first[owner] for owner in owners.tolist())
    alone = (weights[(weights > 0).sum(1) == 1] > 0).any(0)
    states: tuple[PatchState, ...] = tuple(
        "dropped" if owner < 0 else "kept" if is_token else "merged"
        for owner, is_token in zip(owners.tolist(), alone.tolist(), strict=True)
    )
    return TokenGroups(0, len(visual), groups, states)


def patch_counts(visual: VisualTokens) -> Mapping[PatchState, int]:
    """The number of patches that are visual tokens of their own, that are in means with others, and that no
    token stands for."""
    states = token_groups(visual).states
    return {state: states.count(state) for state in PATCH_STATES}


def draw(
    pictures: Sequence[Pixels],
    visual: Sequence[VisualTokens],
    grid: tuple[int, int],
    plan: str,
    answer: str,
) -> Image.Image:
    """A page with two panels for each picture: the input, and the patches behind its visual tokens.

    pictures: each (S, S, 3) uint8. grid: rows and columns of patches. answer: one line.
    """
    panels: list[tuple[Pixels, str, str]] = []
    for number, (pixels, tokens) in enumerate(zip(pictures, visual, strict=True), 1):
        image, stage = explain_picture.panel_image(pixels, grid), token_groups(tokens)
        painted = explain_picture.paint(image, stage, grid, explain_picture.outline_colours([stage]))
        states = [f"{count} {state}" for state, count in patch_counts(tokens).items() if count]
        panels.append((image, f"picture {number}: {grid[0] * grid[1]} patches", plan))
        panels.append((painted, f"{len(tokens)} visual tokens", ", ".join(states)))
    return explain_picture.page(panels, answer)
