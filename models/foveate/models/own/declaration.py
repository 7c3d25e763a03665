"""Reads and checks the optional members of an own model."""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral
from typing import Any

from foveate.core.checkpoint_options import (
    IMAGE_SIZES,
    MAX_IMAGE_SIZE,
    MIN_IMAGE_SIZE,
    NOTHING_STATED,
    CheckpointOptions,
    flag_of,
)
from foveate.core.class_labels import MAX_LABELS, label_problem, labels_in_order
from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models.weights.options_file import with_labels_read

DEFAULT_SIZE = 224
MAX_PLANS = 100
"""Most plans: each size of each variant is one. Every plan runs and is timed before it is used."""
VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
MAX_BATCH = 1024
"""Most images in a batch: batches of any size up to it are timed at the start."""
KEYWORDS = ("size", "variant", "plan")
"""Parameters that `predict` may have beside the batch."""
_CROP = ("crop_pct", "crop_mode", "interpolation")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an own model says about itself, checked."""

    name: str
    """A name that may stand in a plan."""
    description: str
    labels: tuple[str, ...]
    """Empty where the model names none."""
    sizes: tuple[int, ...]
    """Sides in pixels, the largest last."""
    variants: tuple[str, ...]
    """The last is full; the name alone where the model names none."""
    softmax: bool
    input: InputSpec | None
    max_batch: int
    """0 for the default."""
    version: str
    keywords: frozenset[str]
    """The names in KEYWORDS that `predict` takes."""
    preprocesses: bool


def declare(model: object, options: CheckpointOptions = NOTHING_STATED) -> Declaration:
    """Read the members of an own model; options come before them. Raises SetupError, one sentence."""
    name = name_of(model)
    title = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip("_.-")[:80] or "model"
    keywords = _keywords(model, title)
    stated = with_labels_read(options)
    sizes, variants = _sizes(model, title), _variants(model, title, keywords)
    if len(sizes) * len(variants) > MAX_PLANS:
        raise SetupError(
            f"{title} declares {len(sizes)} sizes of {len(variants)} variant(s), and at most {MAX_PLANS} "
            "plans are served: name fewer sizes, as in sizes = (128, 160, 192, 224)"
        )
    return Declaration(
        title,
        _description(model),
        _labels(model, title, stated),
        sizes,
        variants,
        _softmax(model, title),
        _input(model, title, stated),
        _max_batch(model, title),
        _text(model, "version"),
        keywords,
        callable(getattr(model, "preprocess", None)),
    )


def name_of(model: object) -> str:
    """The name that a model declares, else that of its class. Raises SetupError."""
    own = type(model) if not isinstance(model, type) else model
    return _text(model, "name") or own.__name__


def _text(model: object, member: str) -> str:
    value = getattr(model, member, None)
    if value is None or callable(value):  # a method of this name has another meaning
        return ""
    if not isinstance(value, str | int | float):
        raise SetupError(
            f"{type(model).__name__}.{member} is a {type(value).__name__}: it must be a short text"
        )
    return str(value)


def _description(model: object) -> str:
    text = _text(model, "description")
    docs = type(model).__dict__.get("__doc__")  # not that of a base class
    return text or ((docs or "").strip() or "your own model").splitlines()[0]


def _keywords(model: object, name: str) -> frozenset[str]:
    predict = getattr(model, "predict", None)
    if not callable(predict):
        raise SetupError(f"{name} has no method predict(batch): add it, or name another class")
    if inspect.iscoroutinefunction(predict) or inspect.isasyncgenfunction(predict):
        raise SetupError(f"{name}.predict is async: it runs on a thread of its own, so write it with def")
    try:
        parameters = list(inspect.signature(predict).parameters.values())
    except (TypeError, ValueError):  # some compiled functions have none
        return frozenset()
    if not parameters or parameters[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise SetupError(f"{name}.predict takes no batch: write def predict(self, batch)")
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters[1:] if p.default is p.empty and p.kind not in variable]
    extra = [parameter for parameter in required if parameter not in KEYWORDS]
    if extra:
        raise SetupError(
            f"{name}.predict needs the argument {extra[0]}: it gets the batch, and {', '.join(KEYWORDS)} if "
            "it names them"
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return frozenset(KEYWORDS)
    return frozenset(p.name for p in parameters[1:] if p.name in KEYWORDS)


def _items(model: object, name: str, member: str) -> tuple[Any, ...]:
    value = getattr(model, member, None)
    if value is None or callable(value):
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise SetupError(f"{name}.{member} is {value!r:.60}: it must be a list")
    return tuple(islice(value, MAX_LABELS + 1))


def _labels(model: object, name: str, stated: CheckpointOptions) -> tuple[str, ...]:
    if stated.labels:
        return tuple(stated.labels)
    value = getattr(model, "labels", None)
    if isinstance(value, Mapping):  # such as id2label of transformers
        try:
            names = tuple(map(str, labels_in_order(value)))
        except ValueError:
            raise SetupError(
                f"{name}.labels is a table whose keys are no class indices: it must be a list of names"
            ) from None
    else:
        names = tuple(str(label) for label in _items(model, name, "labels"))
    if problem := label_problem(names):
        raise SetupError(f"{name}.labels: {problem}")
    return names


def _softmax(model: object, name: str) -> bool:
    value = getattr(model, "softmax", False)
    if not isinstance(value, bool) and not callable(value):
        raise SetupError(f"{name}.softmax is {value!r:.40}: it must be True or False")
    return value is True


def _sizes(model: object, name: str) -> tuple[int, ...]:
    sizes = _items(model, name, "sizes") or (DEFAULT_SIZE,)
    for size in sizes:
        whole = isinstance(size, Integral) and not isinstance(size, bool)
        if not whole or not MIN_IMAGE_SIZE <= int(size) <= MAX_IMAGE_SIZE:
            raise SetupError(
                f"{name}.sizes holds {size!r:.40}: a size is the side of a square image, a whole number; "
                f"{IMAGE_SIZES}"
            )
    return tuple(sorted({int(size) for size in sizes}))


def _variants(model: object, name: str, keywords: frozenset[str]) -> tuple[str, ...]:
    variants = _items(model, name, "variants")
    for variant in variants:
        if not isinstance(variant, str) or not VARIANT.fullmatch(variant):
            raise SetupError(
                f"{name}.variants holds {variant!r:.40}: a name has letters, digits, '_', '.' and '-'"
            )
    if len(set(variants)) < len(variants):
        raise SetupError(f"{name}.variants names a variant twice")
    if len(variants) > 1 and not keywords & {"variant", "plan"}:
        raise SetupError(
            f"{name} has variants, but predict does not take one: write def predict(self, batch, variant)"
        )
    return variants or (name,)


def _input(model: object, name: str, stated: CheckpointOptions) -> InputSpec | None:
    other = [option for option in stated.stated() if option not in ("labels", *_CROP)]
    if other:
        raise SetupError(
            f"{flag_of(other[0])} cannot be stated about {name}: its own code prepares images; "
            "--labels, --crop-pct, --crop-mode and --interpolation can"
        )
    spec = getattr(model, "input", InputSpec())
    crop = {option: value for option, value in stated.stated().items() if option in _CROP}
    if spec is not None and not isinstance(spec, InputSpec):
        if callable(spec):  # a method of this name has another meaning
            spec = InputSpec()
        else:
            raise SetupError(
                f"{name}.input is {spec!r:.40}: it must be a foveate.models.own.InputSpec or None"
            )
    if spec is None and crop:
        raise SetupError(
            f"{flag_of(next(iter(crop)))} cannot be stated about {name}, which gets undecoded bytes"
        )
    return spec and replace(spec, **crop)


def _max_batch(model: object, name: str) -> int:
    value = getattr(model, "max_batch", 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_BATCH:
        raise SetupError(f"{name}.max_batch is {value!r:.40}: it must be a whole number up to {MAX_BATCH}")
    return value
