"""Flags that state what the weights of a model do not show. `serve`, `predict` and `profile` share them."""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from foveate.core.checkpoint_options import CheckpointOptions, flag_of
from foveate.core.errors import SetupError
from foveate.core.settings import Settings

PANEL = "What the weights of --model do not show"
"""The heading of the flags in --help."""


def _option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=PANEL)


FLAGS: dict[str, Any] = {
    "mean": Annotated[str | None, _option("Mean of each channel in 0..1, as in 0.485,0.456,0.406.")],
    "std": Annotated[str | None, _option("Deviation of each channel, as in 0.229,0.224,0.225.")],
    "crop_pct": Annotated[float | None, _option("Side of the crop over the resized image's.")],
    "crop_mode": Annotated[str | None, _option("center keeps the aspect ratio, squash does not.")],
    "interpolation": Annotated[str | None, _option("bilinear or bicubic.")],
    "heads": Annotated[int | None, _option("Attention heads of each block.")],
    "activation": Annotated[str | None, _option("gelu, gelu_tanh, quick_gelu or silu.")],
    "eps": Annotated[float | None, _option("Epsilon of the layer norms.")],
    "pool": Annotated[str | None, _option("What is classified: token, avg, token_avg or map.")],
    "image_size": Annotated[int | None, _option("Side of the input in pixels.")],
    "labels": Annotated[str | None, _option("Text file with one class name in each line.")],
    "architecture": Annotated[str | None, _option("timm's name of the network.")],
    "prefix": Annotated[str | None, _option("Read the parameters under this prefix alone.")],
}
"""The flags by their name in `CheckpointOptions`."""


def with_checkpoint_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these flags. It gets those that are given as the argument `stated`, by name."""
    own = inspect.signature(command)
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in FLAGS.items()
    ]

    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in FLAGS}
        command(**values, stated={name: value for name, value in given.items() if value is not None})

    kept = [p.replace(kind=p.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "stated"]
    run.__signature__ = own.replace(parameters=[*kept, *extra])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *extra)}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def model_options(models: Sequence[str], stated: dict[str, Any]) -> dict[str, Any] | None:
    """The setting `model_options` of these flags; None without flags.

    Raises SetupError for values out of range, and for flags beside several models, or beside none.
    """
    if not stated:
        return None
    if len(models) != 1:
        raise SetupError(
            f"{flag_of(next(iter(stated)))} describes the weights of one --model, and there are "
            f"{len(models)}: write it into a JSON file beside the weights, or set FOVEATE_MODEL_OPTIONS"
        )
    try:
        CheckpointOptions(**stated)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        reason = first["msg"].removeprefix("Value error, ")
        raise SetupError(f"{flag_of(name)} cannot be {stated[name]}: {reason}") from None
    return {models[0]: stated}


def check_model_options(settings: Settings) -> None:
    """Raise SetupError for options of a model that is not served."""
    unknown = sorted(settings.model_options.keys() - set(settings.models))
    if unknown:
        raise SetupError(
            f"model_options names {unknown[0]!r}, which is not in models: {', '.join(settings.models)}"
        )
