"""The command line: `foveate serve`, `foveate predict`, `foveate models`."""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from foveate.core.errors import FoveateError, SetupError
from foveate.core.settings import Settings
from foveate.gateway.media import silence_decoder_warnings

app = typer.Typer(
    name="foveate",
    help="Inference serving for vision that decides, per request, how much compute to spend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
complaints = Console(stderr=True)

MODEL_HELP = "Shipped name, timm name or .safetensors file"
# typer reads these annotations at run time and wants Optional, not `| None`, in an alias.
Models = Annotated[list[str] | None, typer.Option("--model", "-m", help=f"{MODEL_HELP}; repeatable.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help=f"{MODEL_HELP}.")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16; auto measures here.")]
PlanText = Annotated[str | None, typer.Option("--plan", help="Plan to run under, as in evit:0.7.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(help="Threads of one forward; 0: one a core.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.")]
MaxBatch = Annotated[int | None, typer.Option(help="Requests in a batch at most; 0: suits the device.")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]


@app.command()
def serve(
    model: Models = None,
    host: Host = None,
    port: Port = None,
    plan: PlanText = None,
    precision: Precision = None,
    device: Device = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    log_level: LogLevel = None,
) -> None:
    """Serve models over HTTP. Every setting is a FOVEATE_* environment variable too."""
    flags = dict(locals())
    flags["models"] = tuple(flags.pop("model") or ()) or None
    settings = settings_from(flags)
    start_logging(settings)
    from foveate.cluster.local import LocalCluster
    from foveate.core.metrics import Metrics
    from foveate.gateway.app import create_app
    from foveate.gateway.server import server

    metrics = Metrics()
    factories = [partial(load, name, settings) for name in settings.models]
    cluster = LocalCluster(factories, metrics, settings.queue_items, settings.queue_bytes)
    application = create_app(cluster, settings, metrics)
    for card in cluster.cards().values():
        console.print(f"{card.full}: {card.description}", highlight=False, markup=False)
    web = server(application, cluster, settings)
    web.run()
    if not web.finished:
        os._exit(1)  # a forward that is stuck in its thread would keep the process for ever


@app.command()
def predict(
    picture: Annotated[Path, typer.Argument(help="A picture file.")],
    model: Model = None,
    plan: PlanText = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    precision: Precision = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Name what a picture shows, what that cost, and what was looked at."""
    flags = {"models": (model,) if model else None, "plan": plan, "precision": precision, "device": device}
    settings = settings_from(flags)
    start_logging(settings)
    try:
        data = picture.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {picture}: {error.strerror}") from None
    runner = load(settings.models[0], settings)
    from foveate.gateway import predict as one

    chosen = runner.card.plan(settings.plan)
    fields, pixels, looked_at = one.predict(runner, data, chosen, top_k, settings.max_pixels)
    if as_json:
        sys.stdout.write(orjson.dumps(fields, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        one.show(console, fields, pixels, looked_at)


@app.command()
def models() -> None:
    """List the models that come with this installation, and what each plan keeps."""
    from foveate.models import zoo

    table = Table("model", "plan", "top-1", "quality", box=None)
    for name in zoo.names():
        card = zoo.card(name)
        for step in reversed(card.ladder):
            table.add_row(name, step.plan, f"{step.top1:.1%}", f"{step.quality:.3f}")
        console.print(f"{name}: {card.description}", highlight=False, markup=False)
    console.print(table)
    console.print("Any timm ViT by name and any local .safetensors file can be served too: --model NAME")


def settings_from(flags: dict[str, Any]) -> Settings:
    """Flags over FOVEATE_* variables over defaults. Raises SetupError with one sentence."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SetupError(f"{where}: {first['msg']}") from None


def start_logging(settings: Settings) -> None:
    """Logs go to standard error; what decoders think of damaged metadata goes nowhere."""
    handler = RichHandler(console=complaints, show_path=False)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", handlers=[handler])
    silence_decoder_warnings()
    # It warns of every broken body, at the clients' will.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    known = {f"FOVEATE_{name.upper()}" for name in Settings.model_fields}
    for name in sorted(os.environ):
        # No error: Kubernetes makes variables of this prefix for a service called foveate.
        if name.startswith("FOVEATE_") and name not in known:
            logging.warning("%s is not a setting, and is ignored", name)


def load(name: str, settings: Settings) -> Any:
    """A warm runner. Torch is imported here, so that a gateway without it still has a command line."""
    try:
        from foveate.models.load import load as load_runner
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        raise SetupError(f"{error.name} is not installed: pip install 'foveate[torch]'") from None
    wanted = None if settings.precision == "auto" else settings.precision
    with complaints.status(f"loading {escape(name)}, and measuring it once if it is new here"):
        runner = load_runner(name, wanted, settings.device, settings.threads, settings.max_batch)
    runner.check(runner.card.plan(settings.plan))
    return runner


def main() -> None:
    """Run the command line; what cannot be done is said in one sentence."""
    try:
        app()
    except FoveateError as error:
        complaints.print(f"[red]foveate:[/] {escape(error.detail)}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
