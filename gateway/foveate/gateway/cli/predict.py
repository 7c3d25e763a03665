"""`foveate predict`: classify one image, and show the compute spent and the patches that were kept."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate.core.errors import SetupError
from foveate.core.model import ModelCard
from foveate.core.outcome import Explanation, PatchState, Result
from foveate.core.plan import Plan
from foveate.engine.runner import HasExplanations, Runner
from foveate.gateway.cli.terminal import is_unicode
from foveate.gateway.media.image import decode_image
from foveate.gateway.schemas.image import prediction_fields
from foveate.gateway.schemas.response import chosen_field
from foveate.models.profiling import explain_picture

BLOCKS: Mapping[PatchState, str] = {"kept": "█", "merged": "░", "dropped": "·"}
ASCII_BLOCKS: Mapping[PatchState, str] = {"kept": "#", "merged": "+", "dropped": "."}


@dataclass(frozen=True, slots=True)
class ExplainedPrediction:
    """The answer for one image."""

    fields: dict[str, Any]
    """Classes and costs, ready for JSON."""
    pixels: NDArray[np.uint8]
    """(S, S, 3) uint8 RGB: the input of the model."""
    explanation: Explanation | None
    """None for a model that cannot explain its answers."""


def predict(runner: Runner, data: bytes, plan: Plan, top_k: int, max_pixels: int) -> ExplainedPrediction:
    """Classify an encoded image under a plan, and time it without set-up.

    The model classifies images, as `check_takes_images` has checked. Raises FoveateError for an image that
    cannot be decoded, or a plan that cannot run.
    """
    card = runner.card
    if card.input is None:
        raise SetupError(
            f"{card.name} takes undecoded bytes: run `foveate serve` and send them to /{card.task}"
        )
    runner.check(plan)
    pixels = decode_image(data, card.input, plan.image_size, max_pixels)
    batch = runner.stack([pixels], plan)
    runner.run(batch, plan)  # the first run under a plan includes set-up
    started = time.perf_counter()
    (result,) = runner.run(batch, plan)
    compute_s = time.perf_counter() - started
    if isinstance(result, Exception):
        raise result
    explanation = runner.explain([pixels], plan)[0] if isinstance(runner, HasExplanations) else None
    return ExplainedPrediction(_fields(card, plan, result, top_k, compute_s), pixels, explanation)


def check_takes_images(card: ModelCard) -> None:
    """Raises SetupError for a model that needs more than one image: a clip, or points on an image."""
    if card.task == "clicks":
        raise SetupError(
            f"{card.name} finds the object at points of an image: run `foveate serve` and send the image "
            "with points to /segment"
        )
    if card.task == "chat":
        raise SetupError(f"{card.name} answers questions about images: ask it with `foveate ask`")
    if card.task in ("embed", "text"):
        raise SetupError(f"{card.name} makes embeddings: run `foveate serve` and send images to /embed")
    if card.frames:
        raise SetupError(
            f"{card.name} takes clips, not images: run `foveate serve` and send clips to /{card.task}"
        )


def _fields(card: ModelCard, plan: Plan, result: Result, top_k: int, compute_s: float) -> dict[str, Any]:
    full = card.ladder[-1]
    return {
        "model": card.name,
        "plan": str(plan),
        "predictions": prediction_fields(card, result, top_k),
        "tokens": result.tokens,
        "tokens_full": full.tokens,
        "exit_layer": result.exit_layer,
        "chosen": chosen_field(card, result),
        "gflops": round(result.gflops, 4),
        "gflops_full": round(full.gflops, 4),
        "compute_ms": round(compute_s * 1e3, 2),
    }


def show(console: Console, prediction: ExplainedPrediction) -> None:
    """Print a table of classes, the costs, and a mosaic of the patches."""
    fields, explanation = prediction.fields, prediction.explanation
    table = Table("class", "probability", box=None)
    for row in fields["predictions"]:
        table.add_row(row["label"], f"{row['score']:.1%}")
    console.print(table)
    full = fields["gflops_full"]  # 0 where it is not known
    cost = f"{fields['gflops']:.2f} GFLOPs, {fields['gflops'] / full:.0%} of full; " if full else ""
    chosen = f", which chose {fields['chosen']}" if fields["chosen"] else ""
    console.print(f"plan    [bold]{fields['plan']}[/]{chosen}", highlight=False)
    console.print(f"cost    {cost}{fields['compute_ms']:.1f} ms")
    if fields["tokens_full"] > 1:  # a model of your own has no tokens
        console.print(f"tokens  {fields['tokens']} of {fields['tokens_full']} at the end")
    if explanation is None:
        return
    console.print(_mosaic(prediction.pixels, explanation, BLOCKS if is_unicode(console) else ASCII_BLOCKS))
    counts = Counter(explanation.patch_states)
    console.print(
        f"patches at the end: {counts['kept']} kept, {counts['merged']} merged, {counts['dropped']} dropped"
    )


def _mosaic(
    pixels: NDArray[np.uint8], explanation: Explanation, characters: Mapping[PatchState, str]
) -> Text:
    """Two characters for each patch, in its mean colour. They show the state of the patch at the end."""
    rows, columns = explanation.grid
    # A content plan may choose a rung whose patches do not divide the input evenly.
    means = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BOX)
    colours = np.asarray(means).reshape(-1, 3).tolist()
    text = Text()
    for index, ((red, green, blue), fate) in enumerate(zip(colours, explanation.patch_states, strict=True)):
        # Block characters, not coloured spaces: they are visible without colours too.
        style = "dim" if fate == "dropped" else f"rgb({red},{green},{blue})"
        text.append(2 * characters[fate], style)
        if index % columns == columns - 1:
            text.append("\n")
    text.right_crop(1)
    return text


def draw(prediction: ExplainedPrediction, path: Path) -> None:
    """Write the explanation as a PNG. Raises SetupError if there is none, or the file cannot be written."""
    fields = prediction.fields
    if prediction.explanation is None:
        raise SetupError(f"{fields['model']} cannot explain its answers: leave out --explain")
    best = fields["predictions"][0]
    top1 = f"{best['score']:.0%} {best['label']}"
    plan = f"{fields['chosen']}, by its content" if fields["chosen"] else fields["plan"]
    encoded = BytesIO()
    explain_picture.draw(prediction.pixels, prediction.explanation, plan, top1).save(encoded, "png")
    write_png(encoded.getvalue(), path)


def write_png(png: bytes, path: Path) -> None:
    """Write an encoded image. Raises SetupError if the file cannot be written."""
    try:
        path.write_bytes(png)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None
