"""The command line: `foveate` serve, predict, ask, profile, train-exits, autoscaler and models."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape
from rich.table import Table

from foveate.core.default_models import PHOTO_INSTALL_COMMAND, PHOTO_MODEL, missing_photo_weights
from foveate.core.errors import FoveateError, SetupError
from foveate.core.settings import Settings, read_settings
from foveate.gateway.cli.ask import ask
from foveate.gateway.cli.autoscaler import autoscaler
from foveate.gateway.cli.checkpoint_flags import check_model_options, model_options, with_checkpoint_flags
from foveate.gateway.cli.installed_models import with_installed_models
from foveate.gateway.cli.model_loader import (
    load,
    load_options,
    load_unprofiled,
    ray_needed,
    torch_needed,
)
from foveate.gateway.cli.terminal import (
    check_address,
    console,
    end_if_disk_is_full,
    error_console,
    prepare_terminal,
    print_error,
    print_json,
    print_line,
    spinner,
    start_logging,
)
from foveate.gateway.objective import default_plan

app = typer.Typer(
    name="foveate",
    help="Inference serving for vision that decides, per request, how much compute to spend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MODEL_HELP = (
    "Shipped name, timm name, file or folder of weights, transformers' org/name, .onnx file, or "
    "package.module:Class"
)
ModelsOption = Annotated[list[str] | None, typer.Option("--model", "-m", help=f"{MODEL_HELP}; repeatable.")]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help=f"{MODEL_HELP}.")]
SiblingsOption = Annotated[
    list[str] | None, typer.Option("--with", help="A lighter model that may answer for this one; repeatable.")
]
PrecisionOption = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16; auto measures here.")]
PlanOption = Annotated[str | None, typer.Option("--plan", help="Plan to run under, as in evit:0.7.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads of one forward; 0: one for each core.")]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int | None, typer.Option(help="Port to listen on.")]
MaxBatchOption = Annotated[int | None, typer.Option(help="Most requests in a batch; 0: chosen by device.")]
LogLevelOption = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]


@app.command()
@with_checkpoint_flags
def serve(
    stated: dict[str, Any],
    model: ModelsOption = None,
    siblings: SiblingsOption = None,
    host: HostOption = None,
    port: PortOption = None,
    plan: PlanOption = None,
    policy: Annotated[str | None, typer.Option(help="slo, or fifo: first come, first served.")] = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    max_batch: MaxBatchOption = None,
    cluster: Annotated[str | None, typer.Option(help="local: all in one process; ray: on Ray Serve.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, as in auto; implies --cluster ray.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="On Ray: workers of each model.")] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Serve models over HTTP. Every setting is a FOVEATE_* environment variable too."""
    flags = dict(locals())
    flags["models"] = with_siblings(flags.pop("model") or (), flags.pop("siblings") or ())
    flags["model_options"] = model_options(model or (), flags.pop("stated"))
    if ray_address:
        flags["cluster"] = "ray"
    settings = settings_from(flags)
    check_model_options(settings)
    start_logging(settings)
    settings = with_installed_models(settings)
    if settings.cluster == "ray":
        with ray_needed():
            from foveate.gateway.cli import serve_ray
        serve_ray.serve(settings, print_line)
    else:
        from foveate.gateway.cli import serve_local

        check_address(settings.host, settings.port)
        serve_local.serve(settings, print_line, load_with_status)


@app.command()
@with_checkpoint_flags
def predict(
    stated: dict[str, Any],
    image: Annotated[Path, typer.Argument(help="An image file.")],
    model: ModelOption = None,
    plan: PlanOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of classes to print.")] = 5,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    explain: Annotated[
        Path | None,
        typer.Option(help="Draw which patches the model kept, or the mask it found, into this .png."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Classify or segment an image; print its classes, the compute spent, and the patches or the mask."""
    models = () if model is None else (model,)  # an empty name is refused, as in --model "$UNSET"
    flags = {"models": models or None, "plan": plan, "precision": precision, "device": device}
    settings = settings_from({**flags, "model_options": model_options(models, stated)})
    start_logging(settings)
    if explain is not None and explain.suffix.lower() != ".png":
        raise SetupError(f"--explain writes a PNG, so its file name must end in .png, not {explain}")
    try:
        data = image.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {image}: {error.strerror}") from None
    settings = with_installed_models(settings)
    runner = load_with_status(settings.models[0], settings, served=False)
    from foveate.gateway.cli import predict as command
    from foveate.gateway.cli import predict_masks

    command.check_takes_images(runner.card)
    chosen = default_plan(runner.card, settings) or runner.card.full
    answer: command.ExplainedPrediction | predict_masks.SegmentedImage
    if runner.card.task == "segment":
        answer = predict_masks.segment(runner, data, chosen, settings.max_pixels)
        if explain is not None:
            command.write_png(answer.rendered.overlay or answer.rendered.mask, explain)
    else:
        answer = command.predict(runner, data, chosen, top_k, settings.max_pixels)
        if explain is not None:
            command.draw(answer, explain)
    if as_json:
        print_json(answer.fields, orjson.OPT_INDENT_2)
    elif isinstance(answer, predict_masks.SegmentedImage):
        predict_masks.show(console, answer)
    else:
        command.show(console, answer)


@app.command()
@with_checkpoint_flags
def profile(
    stated: dict[str, Any],
    model: Annotated[str, typer.Argument(help=f"{MODEL_HELP}.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of class folders, images or questions; default: the shipped scenes."),
    ] = None,
    plans: Annotated[str | None, typer.Option(help="Plans to measure, as in evit:0.5,tome:8,160.")] = None,
    batches: Annotated[str | None, typer.Option(help="Batch sizes to time, as in 1,4,8.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each plan is timed; the median is recorded.")
    ] = 7,
    limit: Annotated[int, typer.Option(min=0, help="Most images, drawn by the seed; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the image sample and the timing order.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: where `serve` reads it.")
    ] = None,
    diffrate: Annotated[
        str | None, typer.Option(help="Search DiffRate schedules for these shares of the full cost.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time to measure in, without loading, as in 90s, 10m or 1h; default: no limit."),
    ] = None,
    siblings: SiblingsOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure the quality and cost of each plan of a model on this machine, and write its ladder.

    After an interruption, the same command resumes.
    """
    flags = {"models": (model,), "precision": precision, "device": device, "threads": threads}
    settings = settings_from({**flags, "model_options": model_options((model,), stated)})
    start_logging(settings)
    with torch_needed():
        from foveate.gateway.cli import profile as command
        from foveate.models.profiling.budget import parse_budget

    parse_budget(budget)  # a budget that is no time is refused before the model is loaded
    options = command.ProfileOptions(model, data, plans, batches, rounds, limit, seed, diffrate, out, budget)
    with error_console.status(f"loading {escape(model)}", spinner=spinner()):
        unprofiled = load_unprofiled(model, settings, siblings or ())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what was measured is on disk
    try:
        measured = command.profile(options, unprofiled, settings.max_pixels, error_console)
    except KeyboardInterrupt:
        error_console.print(command.resume_hint(options), highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    command.show(console, measured, options.target)


@app.command(name="train-exits")
@with_checkpoint_flags
def train_exits(
    stated: dict[str, Any],
    model: Annotated[str, typer.Argument(help="A ViT by timm name, .safetensors file or its folder.")],
    data: Annotated[Path, typer.Option(help="Folder of images; they need no labels.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: where `serve` reads it.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Time to train in, without loading, as in 90s, 30m or 1h.")
    ] = "30m",
    limit: Annotated[int, typer.Option(min=0, help="Most images, drawn by the seed; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images and of the training.")] = 0,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train early exits and token gates for a model, from its own answers to images.

    The model itself is not changed. After an interruption, the same command resumes.
    """
    flags = {"models": (model,), "precision": precision, "device": device, "threads": threads}
    settings = settings_from({**flags, "model_options": model_options((model,), stated)})
    start_logging(settings)
    with torch_needed():
        from foveate.gateway.cli import train_exits as command
    options = command.TrainOptions(model, data, out, budget, limit, seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what was trained is on disk
    try:
        agreements = command.train_exits(options, load_options(settings), settings.max_pixels, error_console)
    except KeyboardInterrupt:
        error_console.print(command.resume_hint(options), highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    command.show(console, agreements, options)


app.command()(ask)
app.command()(autoscaler)


@app.command()
def models() -> None:
    """List the shipped models, and the quality and cost of each plan."""
    from foveate.models import zoo
    from foveate.models.opaque import photo_family
    from foveate.models.vlm import checkpoint

    descriptions = {PHOTO_MODEL: photo_family.DESCRIPTION}
    descriptions |= {name: zoo.card(name).description for name in zoo.names()}
    descriptions |= {name: checkpoint.read_card(name).description for name in zoo.chat_names()}
    table = Table("model", "plan", "quality", "accuracy", "GFLOPs", box=None)
    for name, description in descriptions.items():
        is_missing = name == PHOTO_MODEL and missing_photo_weights()
        missing = f" (not installed: {PHOTO_INSTALL_COMMAND})" if is_missing else ""
        console.print(f"{name}: {description}{missing}", highlight=False, markup=False)
        profile = zoo.profile(name)
        for m in reversed(profile.ladder if profile else ()):
            accuracy = "" if m.accuracy is None else f"{m.accuracy:.1%}"
            table.add_row(name, m.plan, f"{m.quality:.3f}", accuracy, f"{m.gflops:.3f}")
    console.print(table)
    console.print(
        "Any timm ViT by name, and any local file or folder of weights, can be served too: --model NAME"
    )


def settings_from(flags: dict[str, Any]) -> Settings:
    """Settings from flags, then FOVEATE_* variables, then defaults. Raises SetupError for a bad value."""
    return read_settings({name: value for name, value in flags.items() if value is not None})


def with_siblings(models: Sequence[str], siblings: Sequence[str]) -> tuple[str, ...] | None:
    """The models to serve, where siblings belong to the only one; None for the default models."""
    if siblings and len(models) != 1:
        raise SetupError(
            "--with names siblings of one model: pass one --model, or list them, as in --model a,b"
        )
    return tuple([",".join([*models, *siblings])] if siblings else models) or None


def load_with_status(name: str, settings: Settings, served: bool = True) -> Any:
    """Load a model, with a status line on the terminal meanwhile."""
    message = f"loading {escape(name)}; a model that is new on this machine is timed once"
    with error_console.status(message, spinner=spinner()):
        return load(name, settings, served)


def main() -> None:
    """Run the command line. An expected error is printed in one sentence, with exit status 2."""
    prepare_terminal()
    try:
        app()
    except FoveateError as error:
        print_error(error)
        raise SystemExit(2) from None
    except OSError as error:
        end_if_disk_is_full(error)
        raise
