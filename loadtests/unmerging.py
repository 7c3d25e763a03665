"""Compare ways to attend to merged visual tokens as to their patches: `python -m loadtests.unmerging`.

For DyMU (arXiv 2504.17040): attention among the visual tokens of one picture under the plain causal mask,
under the mask of virtual unmerging, unmerged exactly, and with keys and values expanded to the patches. Then
the whole prefill of a small language model, plain and under the mask, and the methods' own work. Times are
medians of interleaved runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from foveate.models import compression
from foveate.models.layers.visual_tokens import (
    CompressionContext,
    PatchVectors,
    QuestionTokens,
    VisualAssignment,
)
from foveate.models.vlm.decoder import DecoderSpec, build_decoder
from foveate.models.vlm.unmerging import expanded_attention, unmerged_attention, unmerging_mask

GRID, WIDTH, HEADS, TEXT = 14, 256, 4, 24
COUNTS = (16, 49, 100)
FULL = CompressionContext((GRID, GRID))


def median_ms(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median time of each way in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def attention_ways(assignment: VisualAssignment, batch: int, count: int) -> dict[str, Callable[[], object]]:
    """The ways to compute attention in one layer. All layers have the same mask, so it is made before."""
    q, k, v = torch.randn(3, batch, HEADS, count, WIDTH // HEADS)
    mask = unmerging_mask(torch.ones(batch, 1, count, count, dtype=torch.bool).tril(), assignment, 0)
    return {
        "plain": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "exact": lambda: unmerged_attention(q, k, v, assignment),
        "expanded": lambda: expanded_attention(q, k, v, assignment),
    }


def prefill_ways(assignment: VisualAssignment, batch: int, count: int) -> dict[str, Callable[[], object]]:
    """The prefill of a picture and a question, without and with the mask, which is made in each run."""
    length = count + TEXT
    decoder = build_decoder(DecoderSpec(1024, WIDTH, 512, 5, HEADS, 4096)).eval()
    causal, embedded = (
        torch.ones(batch, 1, length, length, dtype=torch.bool).tril(),
        torch.randn(batch, length, WIDTH),
    )
    positions = torch.cat([torch.zeros(count), torch.arange(1, TEXT + 1)]).long().expand(batch, -1)

    def prefill(mask: torch.Tensor) -> object:
        return decoder.model(
            inputs_embeds=embedded, position_ids=positions, attention_mask=mask, use_cache=False
        )

    return {
        "plain": lambda: prefill(causal),
        "mask": lambda: prefill(unmerging_mask(causal, assignment, 0)),
    }


def method_ways(patches: PatchVectors, count: int) -> dict[str, Callable[[], object]]:
    """The choice of the visual tokens by each method that compares patches."""
    question = QuestionTokens(
        torch.randn(len(patches.vectors), TEXT, WIDTH), torch.ones(len(patches.vectors), TEXT).bool()
    )
    asked = replace(patches, question=question)
    methods = {
        name: compression.create(f"{name}:{count}", FULL) for name in ("merge", "diverse", "guided", "pool")
    }
    return {name: partial(method, asked) for name, method in methods.items()}


@torch.inference_mode()
def measure(batch: int, repeats: int) -> dict[str, float]:
    """Print and return milliseconds by part, way and number of tokens, as in `attention plain 49`."""
    measured: dict[str, float] = {}
    vectors = torch.randn(batch, GRID * GRID, WIDTH, generator=torch.Generator().manual_seed(0))
    patches = PatchVectors(vectors, vectors[:, :, 0], (GRID, GRID))
    for count in COUNTS:
        assignment = compression.create(f"merge:{count}", FULL)(patches)
        for part, ways in (
            ("attention", attention_ways(assignment, batch, count)),
            ("prefill", prefill_ways(assignment, batch, count)),
            ("methods", method_ways(patches, count)),
        ):
            times = median_ms(ways, repeats)
            measured |= {f"{part} {name} {count}": round(value, 3) for name, value in times.items()}
            shown = ", ".join(f"{name} {value:.2f} ms" for name, value in times.items())
            print(f"{count:4} tokens, batch {batch}, {part}: {shown}", flush=True)
    return measured


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures")
    parser.add_argument("--repeats", type=int, default=31)
    args = parser.parse_args()
    measure(args.batch, args.repeats)


if __name__ == "__main__":
    main()
