"""Find the argument at which a reducer costs a given number of GFLOPs."""

from foveate.core.errors import BadPlan
from foveate.models.reduction import create
from foveate.models.vit.flops import flops
from foveate.models.vit.vit import ElasticViT, ResolvedPlan

SHARES = tuple(f"{value / 100:g}" for value in range(4, 101))
NUMBERS = tuple(str(value) for value in range(61))
ARGUMENTS = {
    "evit": SHARES,
    "iared": SHARES,
    "zerotprune": SHARES,
    "diffrate": SHARES,
    "ats": SHARES,
    "tome": NUMBERS,
    "mctf": NUMBERS,
    "gtp": NUMBERS,
    "pooling": SHARES,
    "random": SHARES,
}
"""Arguments to choose from, by reducer. The baselines `pooling` and `random` are always among them."""


def gflops(model: ElasticViT, spec: str, image_size: int) -> float:
    """Maximum GFLOPs per image with this reducer. Raises BadPlan if the model cannot run it."""
    resolved = ResolvedPlan(create(spec, model), model.config.depth)
    return flops(model, image_size, resolved, resolved.depth)


def closest(model: ElasticViT, name: str, target: float, image_size: int) -> str | None:
    """The reducer with the argument closest to `target` GFLOPs; None if the model cannot run it."""
    distances: dict[str, float] = {}
    for argument in ARGUMENTS[name]:
        spec = f"{name}:{argument}"
        try:
            distances[spec] = abs(gflops(model, spec, image_size) - target)
        except BadPlan:
            continue
    return min(distances, key=lambda spec: distances[spec]) if distances else None
