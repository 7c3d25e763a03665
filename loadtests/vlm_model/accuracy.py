"""The share of right answers of each kind of question: under plans, and without pictures."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from foveate.core.plan import Plan
from foveate.models.profiling.chat_profile import mean_text_tokens
from foveate.models.profiling.chat_quality import ChatEvaluator, KindScores
from foveate.models.vlm.runner import ChatRunner
from loadtests.report import Figures

log = logging.getLogger("vlm_model")
FULL, BLIND, TRAINED_BLIND = "full", "blind", "blind_trained"
"""Rows beside the plans: the model without pictures, and a model that was trained without them."""
MEAN = "exact_match"
"""After the name of a row: the mean over the kinds."""
GFLOPS = "gflops "
"""Before the name of a row: the GFLOPs to the first token of the answer to a question of mean length."""


def measure(runner: ChatRunner, evaluator: ChatEvaluator, plans: Iterable[Plan]) -> Figures:
    """The figures of each plan, and of the model without pictures."""
    figures: Figures = {}
    text_tokens = mean_text_tokens(runner, evaluator.data)
    for plan in plans:
        name = plan.relative_to(runner.full)
        figures[f"{GFLOPS}{name}"] = round(runner.cost(plan, text_tokens).first_token, 4)
        figures |= row(name, evaluator.exact_match(evaluator.answers(plan, _quiet)))
        log.info("%s: %.1f%%", name, 100 * figures[f"{name} {MEAN}"])
    return figures | row(BLIND, evaluator.exact_match(evaluator.answers(None, _quiet)))


def row(name: str, scores: KindScores) -> Figures:
    """The figures of one plan: the mean over the kinds, and each kind."""
    figures = {f"{name} {MEAN}": round(scores.mean, 4)}
    return figures | {f"{name} {kind}": round(share, 4) for kind, share in scores.by_kind.items()}


def trained_blind(log_file: Path) -> Figures:
    """The figures of a training without pictures, from the last check in its log.

    Raises ValueError for a log without a check.
    """
    rows = [json.loads(line) for line in log_file.read_text().splitlines()]
    last = next((checked for checked in reversed(rows) if "mean" in checked), None)
    if last is None:
        raise ValueError(f"{log_file} has no check")
    shares = {kind: last[kind] for kind in last if kind not in ("step", "minutes", "loss", "mean")}
    return row(TRAINED_BLIND, KindScores(dict(sorted(shares.items()))))


def summary(figures: Figures) -> Figures:
    """The key figures. Differences are in points. What was not measured is left out."""
    key: Figures = {"exact_match_full": figures[f"{FULL} {MEAN}"], BLIND: figures[f"{BLIND} {MEAN}"]}
    kinds = kinds_of(figures)
    key |= {f"exact_match_by_kind {kind}": figures[f"{FULL} {kind}"] for kind in kinds}
    key["exact_match_worst_kind"] = min(figures[f"{FULL} {kind}"] for kind in kinds)
    # A model that was trained with pictures may guess badly without one.
    best = max(figures[f"{BLIND} {MEAN}"], figures.get(f"{TRAINED_BLIND} {MEAN}", 0.0))
    key["blind_gap"] = _points(key["exact_match_full"], best)
    if f"{TRAINED_BLIND} {MEAN}" in figures:
        key[TRAINED_BLIND] = figures[f"{TRAINED_BLIND} {MEAN}"]
    for name, first, second in (
        ("points_lost_49", FULL, "pool:49"),
        ("points_lost_16", FULL, "pool:16"),
        ("guided_minus_random_16", "guided:16", "random:16"),
    ):
        pair = f"{first} {MEAN}", f"{second} {MEAN}"
        if figures.keys() >= set(pair):
            key[name] = _points(figures[pair[0]], figures[pair[1]])
    return key


def kinds_of(figures: Figures) -> list[str]:
    """The kinds of questions in the figures."""
    names = [key.removeprefix(f"{FULL} ") for key in figures if key.startswith(f"{FULL} ")]
    return [name for name in names if name != MEAN]


def plans_of(figures: Figures) -> list[str]:
    """The plans of full's size in the figures, without full."""
    return [name for name in _names(figures) if name not in (FULL, BLIND, TRAINED_BLIND) and "@" not in name]


def smaller_plans_of(figures: Figures) -> list[str]:
    """The plans of other sizes than full's in the figures."""
    return [name for name in _names(figures) if "@" in name]


def _names(figures: Figures) -> list[str]:
    """The rows of the figures."""
    return [key.removesuffix(f" {MEAN}") for key in figures if key.endswith(f" {MEAN}")]


def method_of(plan: str) -> tuple[str, int]:
    """The method with its options, and the visual tokens: (merge:unmerge, 16) for `merge:16:unmerge`."""
    name, count, *options = plan.split(":")
    return ":".join([name, *options]), int(count)


def _points(first: float, second: float) -> float:
    return round(100 * (first - second), 2)


def _quiet(done: int, total: int) -> None:
    pass
