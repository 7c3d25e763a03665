"""One small model of each module of timm, for tests and for the table of served architectures."""

from functools import cache

from tests.support.torchvision_ops import import_timm

SKIPPED = frozenset[str]()
"""Modules of timm without a model of their own."""


@cache
def smallest_of_each_module() -> dict[str, str]:
    """By timm's module, the architecture that takes the least compute, as far as its name and size tell."""
    timm = import_timm()
    modules: dict[str, list[str]] = {}
    for name in timm.list_models():
        modules.setdefault(timm.models.model_entrypoint(name).__module__.rpartition(".")[2], []).append(name)
    return {module: min(names, key=lambda name: _rank(timm, name)) for module, names in modules.items()}


def _rank(timm: object, name: str) -> tuple[int, int, str]:
    """Small words come first, then small images."""
    words = (
        "test",
        "atto",
        "femto",
        "pico",
        "nano",
        "micro",
        "tiny",
        "_xxs",
        "xxt",
        "_xs",
        "_s",
        "small",
        "18",
        "_0",
    )
    place = next((place for place, word in enumerate(words) if word in name), len(words))
    side: int = timm.get_pretrained_cfg(name).input_size[-1]  # type: ignore[attr-defined]
    return (place, side, name)
