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
}


def gflops(model: ElasticViT, spec: str, image_size: int) -> float:
    """What a picture costs at most under this reducer."""
    steps = ResolvedPlan(create(spec, model), model.config.depth)
    return flops(model, image_size, steps, steps.depth)


def closest(model: ElasticViT, name: str, target: float, image_size: int) -> str | None:
    """The reducer with the argument that comes closest to `target` GFLOPs; None where it cannot run."""
    found: dict[str, float] = {}
    for argument in ARGUMENTS[name]:
        spec = f"{name}:{argument}"
        try:
            found[spec] = abs(gflops(model, spec, image_size) - target)
        except BadPlan:
            continue
    return min(found, key=lambda spec: found[spec]) if found else None
