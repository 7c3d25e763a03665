"""The page of the bench of the vision-language model."""

from loadtests.report import MISSING, Figures, Goal, cell, goal_table, table
from loadtests.vlm_model.accuracy import (
    BLIND,
    FULL,
    GFLOPS,
    MEAN,
    TRAINED_BLIND,
    kinds_of,
    method_of,
    plans_of,
    smaller_plans_of,
)
from loadtests.vlm_model.charts import file_name

GOALS = (
    Goal(
        "right answers under full, mean over kinds", "exact_match_full", "at least", 0.85, "{:.1%}", "{:.0%}"
    ),
    Goal(
        "right answers under full, worst kind", "exact_match_worst_kind", "at least", 0.7, "{:.1%}", "{:.0%}"
    ),
    Goal("points of full above the better blind baseline", "blind_gap", "at least", 25, "{:.1f}"),
    Goal("points that pool:49 loses to full", "points_lost_49", "at most", 1, "{:.1f}"),
    Goal("points that pool:16 loses to full", "points_lost_16", "at most", 4, "{:.1f}"),
    Goal("points of guided:16 above random:16", "guided_minus_random_16", "at least", 3, "{:.1f}"),
    Goal("answers equal to those of transformers", "generate_equal", "at least", 1, "{:.1%}", "{:.0%}"),
)
UNMERGING = "unmerging "
"""Before the keys of the times of virtual unmerging."""


def page(figures: Figures) -> str:
    """The Markdown page."""
    titles = {MEAN: "mean"} | {kind: kind for kind in kinds_of(figures)}
    charts = "\n\n".join(f"![{title}]({file_name(kind)})" for kind, title in titles.items())
    return f"""# The vision-language model

`vit-t-chat` on {figures["questions"]:g} held-out questions about {figures["pictures"]:g} pictures, under
every compression method and number of visual tokens. An answer is right if it equals the right one; case
and a final period do not matter. `make bench-vlm-model` repeats the bench.

## Goals

{goal_table(GOALS, figures)}

## Kinds of questions

Without a picture, the same model gets the text alone. "Trained blind" is the same decoder, trained on the
same questions without pictures; its figures are those of the last check of its training.

{kinds_table(figures)}

## Methods by visual tokens

Right answers, the mean over kinds. `random`, `uniform` and `pool` look at no content.

{methods_table(figures)}

{charts}

## Smaller pictures

Right answers, the mean over kinds, and GFLOPs to the first token, beside the same plans at full's size. A
model has rows here for the smaller sizes that it was trained on.

{sizes_table(figures)}

## Speed

Milliseconds of a batch of 8 questions, each about a picture of its own: medians of interleaved rounds. The
prefill is that of the language model alone; the time to the first token begins with the pixels.

{speed_table(figures)}

## Virtual unmerging

Milliseconds of ways to attend to merged tokens as to their patches, in a batch of 8 with random weights.
`mask` is what plans with `unmerge` do; `exact` and `expanded` are computed for comparison.

{unmerging_table(figures)}"""


def kinds_table(figures: Figures) -> str:
    """One row for each kind, and one for the mean."""
    columns = (FULL, "pool:49", "pool:16", "guided:16", "random:16", BLIND, TRAINED_BLIND)
    head = ["kind", *columns[:-2], "without a picture", "trained blind"]
    rows = [
        ["mean" if kind == MEAN else kind, *(cell(figures, f"{name} {kind}", "{:.1%}") for name in columns)]
        for kind in (*kinds_of(figures), MEAN)
    ]
    return table(head, rows)


def methods_table(figures: Figures) -> str:
    """One row for each method, one column for each number of tokens."""
    plans = {method_of(plan): plan for plan in plans_of(figures)}
    counts = sorted({count for _, count in plans})
    names = sorted({name for name, _ in plans})
    rows = [
        [name, *(_share(figures, plans.get((name, count))) for count in counts), _share(figures, FULL)]
        for name in names
    ]
    return table(["method", *map(str, counts), "full"], rows)


def sizes_table(figures: Figures) -> str:
    """One row for each plan of a smaller size, below full and what the plan is at full's size."""
    sized = smaller_plans_of(figures)
    smaller = sorted(sized, key=lambda plan: (plan.partition("/")[0], -method_of(plan)[1]))
    plans = [FULL, *dict.fromkeys(plan.partition("/")[2] for plan in smaller), *smaller]
    rows = [
        [plan, _share(figures, plan), cell(figures, f"{GFLOPS}{plan}", "{:.2f}")]
        for plan in plans
        if f"{plan} {MEAN}" in figures
    ]
    return table(["plan", "right answers", "GFLOPs"], rows)


def _share(figures: Figures, plan: str | None) -> str:
    return MISSING if plan is None else cell(figures, f"{plan} {MEAN}", "{:.1%}")


def speed_table(figures: Figures) -> str:
    """Full beside 16 tokens."""
    rows = [
        [
            part,
            *(cell(figures, f"{part} {name} ms", "{:.1f}") for name in ("full", "16")),
            cell(figures, key, "{:.2f}x"),
        ]
        for part, key in (("prefill", "prefill_speedup_16"), ("first token", "first_token_speedup_16"))
    ]
    return table(["stage", "full", "16 tokens", "speed-up"], rows)


def unmerging_table(figures: Figures) -> str:
    """One row for each part and way, one column for each number of tokens."""
    keys = [key.removeprefix(UNMERGING).split() for key in figures if key.startswith(UNMERGING)]
    counts = sorted({int(count) for _, _, count in keys})
    ways = list(dict.fromkeys((part, way) for part, way, _ in keys))
    rows = [
        [part, way, *(cell(figures, f"{UNMERGING}{part} {way} {count}", "{:.2f}") for count in counts)]
        for part, way in ways
    ]
    return table(["part", "way", *(f"{count} tokens" for count in counts)], rows)
