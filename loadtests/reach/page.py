"""The figures and the page of `make bench-reach`."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from foveate.models import zoo
from loadtests.reach import photos
from loadtests.reach.attempt import Attempt
from loadtests.report import ROOT, Figures, Goal, goal_table, table

FAMILY = "efficientnet-lite"
"""The default classifier of photographs."""
ELASTIC_FAMILIES: Mapping[str, str] = {
    "ViT and AugReg": r"^vit_(tiny|small|base|large|huge|giant)_patch\d+_(224|384)$",
    "DeiT": r"^deit_",
    "DeiT III": r"^deit3_",
    "DINOv2": r"dinov2$",
    "DINOv2 with registers": r"_reg4_dinov2$",
    "DINOv3": r"dinov3",
    "EVA": r"^eva_",
    "EVA-02": r"^eva02_",
    "CLIP": r"_clip_",
    "SigLIP": r"siglip",
    "FlexiViT": r"^flexivit_",
    "Perception Encoder": r"_pe_",
    "ViT with rotary positions": r"_rope",
}
"""Families of timm's names that the elastic trunk may run."""
GOALS = (
    Goal("timm architectures that load and answer", "timm_names_served", "at least", 1200),
    Goal("architectures of transformers' image classifiers", "hf_architectures_served", "at least", 12),
    Goal("families that run in the elastic trunk", "elastic_families", "at least", 8),
    Goal(
        "cost of full over the cheapest rung, on photographs",
        "photos_ladder_span",
        "at least",
        5,
        "{:.1f}x",
        "{:g}x",
    ),
    Goal("lines of an own model in the README", "own_model_lines", "at most", 10),
)


def figures(attempts: Sequence[Attempt]) -> Figures:
    """The flat figures. Those of photographs come from the shipped profile."""
    timm = [attempt for attempt in attempts if attempt.module != "transformers"]
    others = [attempt for attempt in attempts if attempt.module == "transformers"]
    counts: Figures = {
        "timm_names_tried": len(timm),
        "timm_names_served": sum(attempt.kind != "refused" for attempt in timm),
        "timm_names_elastic": sum(attempt.kind == "elastic" for attempt in timm),
        "timm_names_opaque": sum(attempt.kind == "opaque" for attempt in timm),
        "timm_modules_served": len({attempt.module for attempt in timm if attempt.kind != "refused"}),
        "hf_architectures_tried": len(others),
        "hf_architectures_served": sum(attempt.kind != "refused" for attempt in others),
        "elastic_families": len(elastic_families(timm)),
        "own_model_lines": own_model_lines((ROOT / "README.md").read_text()),
    }
    profile = zoo.profile(FAMILY)
    return counts | (photos.figures(profile) if profile else {})


def elastic_families(attempts: Sequence[Attempt]) -> dict[str, int]:
    """The families with a model that runs in the elastic trunk, and the number of these models."""
    elastic = [attempt.name for attempt in attempts if attempt.kind == "elastic"]
    counts = {
        family: sum(bool(re.search(pattern, name)) for name in elastic)
        for family, pattern in ELASTIC_FAMILIES.items()
    }
    return {family: count for family, count in counts.items() if count}


def own_model_lines(readme: str) -> int:
    """Lines of code of the first class with a method `predict` in the README's Python blocks.

    Raises ValueError if there is none.
    """
    for block in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        if "def predict" in block:
            return sum(1 for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    raise ValueError("the README shows no class with a method predict")


def body(values: Figures, attempts: Sequence[Attempt]) -> str:
    """The page without its table of settings."""
    timm = [attempt for attempt in attempts if attempt.module != "transformers"]
    others = [attempt for attempt in attempts if attempt.module == "transformers"]
    return f"""# Which checkpoints can be served

Every architecture of timm is loaded with random weights through the server's own loader, and answers one
image. So does a tiny configuration of each tested image classifier of transformers. An *elastic* model runs
in the elastic trunk, with all plans. An *opaque* model runs as it is: its plans change the image size. Sizes
are found by trying each one on tensors without data.

{goal_table(GOALS, values)}

{
        table(
            ["models", "number"],
            [
                ["timm architectures", f"{values['timm_names_tried']:g}"],
                ["elastic", f"{values['timm_names_elastic']:g}"],
                ["opaque", f"{values['timm_names_opaque']:g}"],
                ["refused", f"{values['timm_names_tried'] - values['timm_names_served']:g}"],
            ],
        )
    }

On photographs, the cheapest rung of the default classifier gives the class of full for
{
        values.get(
            "photos_top1_agreement_cheapest", float("nan")
        ):.1%} of the images. With at most one point less than
full agreement, a rung is {
        values.get("photos_speedup_at_1pt_agreement", float("nan")):.2f} times as fast as full.

## Families in the elastic trunk

{
        table(
            ["family", "architectures of timm"],
            [[name, str(count)] for name, count in elastic_families(timm).items()],
        )
    }

## Modules of timm

The sizes are those of the first opaque model of each module, in pixels.

{table(["module", "elastic", "opaque", "refused", "example", "own size", "smaller sizes"], _modules(timm))}

## Refused

{table(["reason", "architectures"], _refusals(timm))}

## transformers

{table(["architecture", "runs", "reason"], [[a.name, a.kind, a.reason] for a in others])}
"""


def _modules(attempts: Sequence[Attempt]) -> list[list[str]]:
    modules: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        modules[attempt.module].append(attempt)
    rows = []
    for module, members in sorted(modules.items()):
        kinds = Counter(member.kind for member in members)
        served = sorted(
            (m for m in members if m.kind != "refused"), key=lambda m: (m.kind != "opaque", m.name)
        )
        shown = served[0] if served else members[0]
        rows.append([
            module, *(str(kinds[kind]) for kind in ("elastic", "opaque", "refused")), f"`{shown.name}`",
            str(shown.image_size or "-"), _sizes(shown),
        ])  # fmt: skip
    return rows


def _sizes(attempt: Attempt) -> str:
    if attempt.kind == "elastic":
        return "multiples of the patch"
    return ", ".join(map(str, attempt.sizes)) or "none"


def _refusals(attempts: Sequence[Attempt]) -> list[list[str]]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for attempt in attempts:
        if attempt.kind == "refused":
            reasons[attempt.reason.replace(attempt.name, "it")].append(attempt.name)
    ordered = sorted(reasons.items(), key=lambda entry: -len(entry[1]))
    return [[reason, ", ".join(f"`{name}`" for name in names)] for reason, names in ordered]
