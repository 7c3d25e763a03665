"""`foveate predict`: classify one image, and show the compute spent and the patches that were kept."""

import time
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate.core.errors import SetupError
from foveate.core.model import ModelCard
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan
from foveate.engine.runner import HasExplanations, Runner
from foveate.gateway.media.image import decode_image
from foveate.gateway.schemas.image import prediction_fields
from foveate.gateway.schemas.response import chosen_field
from foveate.models.profiling import explain_picture


class ExplainingRunner(Runner, HasExplanations, Protocol):
    """A runner that can also explain which patches it kept."""


@dataclass(frozen=True, slots=True)
class ExplainedPrediction:
    """The answer for one image."""

    fields: dict[str, Any]
    """Classes and costs, ready for JSON."""
    pixels: NDArray[np.uint8]
    """(S, S, 3) uint8 RGB: the input of the model."""
    explanation: Explanation


def predict(
    runner: ExplainingRunner, data: bytes, plan: Plan, top_k: int, max_pixels: int
) -> ExplainedPrediction:
    """Classify an encoded image under a plan, and time it without set-up.

    Raises FoveateError for an image that cannot be decoded, a plan that cannot run, or a model that does
    not classify images.
    """
    card = runner.card
    if not card.labels or card.input is None:
        raise SetupError(f"{card.name} has no classifier: it only computes features")
    if not isinstance(runner, HasExplanations):
        raise SetupError(
            f"{card.name} does not classify images: run `foveate serve` and send requests to /{card.task}"
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
    (explanation,) = runner.explain([pixels], plan)
    return ExplainedPrediction(_fields(card, plan, result, top_k, compute_s), pixels, explanation)


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
    share = fields["gflops"] / fields["gflops_full"]
    chosen = f", which chose {fields['chosen']}" if fields["chosen"] else ""
    console.print(f"plan    [bold]{fields['plan']}[/]{chosen}", highlight=False)
    console.print(
        f"cost    {fields['gflops']:.2f} GFLOPs, {share:.0%} of full; {fields['compute_ms']:.1f} ms"
    )
    console.print(f"tokens  {fields['tokens']} of {fields['tokens_full']} at the end")
    console.print(_mosaic(prediction.pixels, explanation))
    counts = Counter(explanation.patch_states)
    console.print(
        f"patches at the end: {counts['kept']} kept, {counts['merged']} merged, {counts['dropped']} dropped"
    )


def _mosaic(pixels: NDArray[np.uint8], explanation: Explanation) -> Text:
    """Two characters for each patch, in its mean colour: full blocks if it was kept to the end, shaded
    blocks if it was merged, dots if it was dropped."""
    rows, columns = explanation.grid
    # A content plan may choose a rung whose patches do not divide the input evenly.
    means = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BOX)
    colours = np.asarray(means).reshape(-1, 3).tolist()
    text = Text()
    for index, ((red, green, blue), fate) in enumerate(zip(colours, explanation.patch_states, strict=True)):
        # Block characters, not coloured spaces: they are visible without colours too.
        style = "dim" if fate == "dropped" else f"rgb({red},{green},{blue})"
        text.append({"kept": "██", "merged": "░░", "dropped": "··"}[fate], style)
        if index % columns == columns - 1:
            text.append("\n")
    text.right_crop(1)
    return text


def draw(prediction: ExplainedPrediction, path: Path) -> None:
    """Write the explanation as a PNG. Raises SetupError if the file cannot be written."""
    fields = prediction.fields
    best = fields["predictions"][0]
    top1 = f"{best['score']:.0%} {best['label']}"
    plan = f"{fields['chosen']}, by its content" if fields["chosen"] else fields["plan"]
    encoded = BytesIO()
    explain_picture.draw(prediction.pixels, prediction.explanation, plan, top1).save(encoded, "png")
    try:
        path.write_bytes(encoded.getvalue())
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None
