"""One picture through one model, for the command line: the answer, its cost, what was looked at."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate.core.errors import SetupError
from foveate.core.model import ModelCard
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.gateway.media import decode_image


class ExplainingRunner(Protocol):
    """A runner that can also say what it looked at."""

    @property
    def card(self) -> ModelCard: ...
    def check(self, plan: Plan) -> None: ...
    def stack(self, media: Sequence[Any], plan: Plan) -> Any: ...
    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]: ...
    def kept_until(self, batch: Any, plan: Plan) -> NDArray[np.int64]: ...


def predict(
    runner: ExplainingRunner, data: bytes, plan: Plan, top_k: int, max_pixels: int
) -> tuple[dict[str, Any], NDArray[np.uint8], NDArray[np.bool_]]:
    """Run an encoded picture. Returns the answer's fields, the (S, S, 3) pixels that the model saw, and
    (P,) which patches it looked at to the end. Raises FoveateError with one sentence."""
    card = runner.card
    if not card.labels or card.input is None:
        raise SetupError(f"{card.name} has no classifier; it only makes features")
    runner.check(plan)
    pixels = decode_image(data, card.input, plan.image_size, max_pixels)
    batch = runner.stack([pixels], plan)
    runner.run(batch, plan)  # the first run under a plan pays for set-up; the timed one should not
    started = time.perf_counter()
    (result,) = runner.run(batch, plan)
    compute_s = time.perf_counter() - started
    if isinstance(result, Exception):
        raise result
    looked_at = runner.kept_until(batch, plan)[0]
    return _fields(card, plan, result, top_k, compute_s), pixels, looked_at == looked_at.max()


def _fields(card: ModelCard, plan: Plan, result: Result, top_k: int, compute_s: float) -> dict[str, Any]:
    best = np.argsort(-result.scores, kind="stable")[:top_k].tolist()
    full = card.ladder[-1]
    return {
        "model": card.name,
        "plan": str(plan),
        "predictions": [
            {"label": card.labels[i], "index": i, "score": round(float(result.scores[i]), 6)} for i in best
        ],
        "tokens": result.tokens,
        "tokens_full": full.tokens,
        "exit_layer": result.exit_layer,
        "gflops": round(result.gflops, 4),
        "gflops_full": round(full.gflops, 4),
        "compute_ms": round(compute_s * 1e3, 2),
    }


def show(
    console: Console, fields: dict[str, Any], pixels: NDArray[np.uint8], looked_at: NDArray[np.bool_]
) -> None:
    """A table of classes, a line of costs, and the picture in coarse: patches put aside are dots."""
    table = Table("class", "probability", box=None)
    for row in fields["predictions"]:
        table.add_row(row["label"], f"{row['score']:.1%}")
    console.print(table)
    share = fields["gflops"] / fields["gflops_full"]
    console.print(f"plan    [bold]{fields['plan']}[/]", highlight=False)
    console.print(
        f"cost    {fields['gflops']:.2f} GFLOPs, {share:.0%} of full; {fields['compute_ms']:.1f} ms"
    )
    console.print(f"tokens  {fields['tokens']} of {fields['tokens_full']} at the end")
    console.print(_mosaic(pixels, looked_at))
    console.print(f"looked at to the end: {looked_at.sum()} of {len(looked_at)} patches")


def _mosaic(pixels: NDArray[np.uint8], looked_at: NDArray[np.bool_]) -> Text:
    """Two characters a patch: its mean colour where it was looked at, dots where it was put aside."""
    side = round(len(looked_at) ** 0.5)
    patch = len(pixels) // side
    colours = pixels.reshape(side, patch, side, patch, 3).mean((1, 3)).astype(int).reshape(-1, 3)
    text = Text()
    for index, ((red, green, blue), kept) in enumerate(zip(colours, looked_at, strict=True)):
        # A block, not a coloured space: it is still there where the terminal has no colours.
        text.append("██" if kept else "··", f"rgb({red},{green},{blue})" if kept else "dim")
        if index % side == side - 1:
            text.append("\n")
    text.right_crop(1)
    return text
