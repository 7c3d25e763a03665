"""The command line: `foveate serve`, `foveate predict`, `foveate profile`, `foveate models`."""

import logging
import os
import sys
import time
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
from foveate.core.settings import PREFIX, RENAMED, Settings
from foveate.gateway.cli.model_loader import load, loading, ray_needed, torch_needed, wanted
from foveate.gateway.media.image import silence_decoder_warnings
from foveate.gateway.objective import default_plan

app = typer.Typer(
    name="foveate",
    help="Inference serving for vision that decides, per request, how much compute to spend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
complaints = Console(stderr=True)

MODEL_HELP = "Shipped name, timm name, .safetensors file, or transformers' org/name or folder"
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
    policy: Annotated[str | None, typer.Option(help="slo, or fifo: what a plain server does.")] = None,
    precision: Precision = None,
    device: Device = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    cluster: Annotated[str | None, typer.Option(help="local: all in one process; ray: on Ray Serve.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster that runs already, as in auto; implies --cluster ray.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="On Ray, workers of each model.")] = None,
    log_level: LogLevel = None,
) -> None:
    """Serve models over HTTP. Every setting is a FOVEATE_* environment variable too."""
    flags = dict(locals())
    flags["models"] = tuple(flags.pop("model") or ()) or None
    if ray_address:
        flags["cluster"] = "ray"
    settings = settings_from(flags)
    start_logging(settings)
    if settings.cluster == "ray":
        with ray_needed():
            from foveate.gateway.cli import serve_ray
        serve_ray.serve(settings, tell)
    else:
        from foveate.gateway.cli import serve_local

        serve_local.serve(settings, tell, load_told)


@app.command()
def predict(
    picture: Annotated[Path, typer.Argument(help="A picture file.")],
    model: Model = None,
    plan: PlanText = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    precision: Precision = None,
    device: Device = None,
    explain: Annotated[Path | None, typer.Option(help="Draw what was looked at into this .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Name what a picture shows, what that cost, and what was looked at."""
    flags = {"models": (model,) if model else None, "plan": plan, "precision": precision, "device": device}
    settings = settings_from(flags)
    start_logging(settings)
    if explain is not None and explain.suffix.lower() != ".png":
        raise SetupError(f"--explain draws a .png picture, so {explain} cannot be its name")
    try:
        data = picture.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {picture}: {error.strerror}") from None
    runner = load_told(settings.models[0], settings, served=False)
    from foveate.gateway.cli import predict as one

    chosen = default_plan(runner.card, settings) or runner.card.full
    answer = one.predict(runner, data, chosen, top_k, settings.max_pixels)
    if explain is not None:
        one.draw(answer, explain)
    if as_json:
        sys.stdout.write(orjson.dumps(answer.fields, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        one.show(console, answer)


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help=f"{MODEL_HELP}.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of class folders, or of pictures; else the shipped scenes.")
    ] = None,
    plans: Annotated[str | None, typer.Option(help="Plans to try, as in evit:0.5,tome:8,160.")] = None,
    batches: Annotated[str | None, typer.Option(help="Batch sizes to time, as in 1,4,8.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times each plan is timed; the median counts.")] = 7,
    limit: Annotated[int, typer.Option(min=0, help="Pictures at most, drawn by the seed; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures drawn and of the order of timing.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to; else where `serve` finds it.")] = None,
    diffrate: Annotated[
        str | None, typer.Option(help="Search DiffRate schedules for these shares of the full cost.")
    ] = None,
    siblings: Annotated[
        list[str] | None, typer.Option("--with", help="A lighter model that may answer in its name.")
    ] = None,
    precision: Precision = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Measure what each plan of a model keeps and costs here, and keep the best as its ladder.

    The same command goes on where it was interrupted.
    """
    flags = {"models": (model,), "precision": precision, "device": device, "threads": threads}
    settings = settings_from(flags)
    start_logging(settings)
    with torch_needed():
        from foveate.gateway.cli import profile as one

        load_unprofiled = loading(model).load_unprofiled
    with complaints.status(f"loading {escape(model)}"):
        loaded = load_unprofiled(
            model,
            wanted(settings),
            settings.device,
            settings.threads,
            settings.max_batch,
            siblings or (),
        )
    asked = one.ProfileOptions(model, data, plans, batches, rounds, limit, seed, diffrate, out)
    try:
        found = one.profile(asked, loaded, settings.max_pixels, complaints)
    except KeyboardInterrupt:
        complaints.print(one.how_to_go_on(asked), highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    one.show(console, found, asked.target)


@app.command()
def autoscaler(
    prometheus: Annotated[str, typer.Argument(help="Where Prometheus is, as in http://127.0.0.1:9090.")],
    least: Annotated[int, typer.Option(min=0, help="Replicas at least.")] = 1,
    most: Annotated[int, typer.Option(min=1, help="Replicas at most.")] = 10,
    utilisation: Annotated[float, typer.Option(help="Share of a replica that full answers may fill.")] = 0.75,
    start_s: Annotated[float, typer.Option(help="Seconds until a new replica serves.")] = 30.0,
    calm_s: Annotated[float, typer.Option(help="Seconds of less before replicas are taken away.")] = 300.0,
    every_s: Annotated[float, typer.Option(min=1, help="Seconds between two decisions.")] = 15.0,
    demand: Annotated[str | None, typer.Option(help="PromQL of full-quality demand, one number.")] = None,
    replicas: Annotated[str | None, typer.Option(help="PromQL of the replicas, one number.")] = None,
    host: Annotated[str, typer.Option(help="Where decisions are published.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port of that.")] = 9400,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print decisions and publish none.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Decide once, and print that.")] = False,
) -> None:
    """Decide how many replicas full quality needs, and publish that for KEDA or an HPA."""
    from foveate.autoscaler import service
    from foveate.autoscaler.policy import ScalingConfig
    from foveate.autoscaler.prometheus import PrometheusClient

    logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler(console=complaints)])
    try:
        rules = ScalingConfig(least, most, utilisation, start_s, calm_s)
        questions = service.Queries(demand or service.DEMAND, replicas or service.REPLICAS)
        scaler = service.Autoscaler(PrometheusClient(prometheus), rules, every_s, questions)
    except ValueError as error:
        raise SetupError(str(error)) from None
    published = None if dry_run or once else service.publish(scaler.registry, host, port)
    if published is not None:
        console.print(f"publishing on http://{host}:{published}/metrics", highlight=False)
    while True:
        decision = scaler.step()
        if decision is not None:
            console.print(f"{decision.replicas} replicas: {decision.reason}", highlight=False, markup=False)
        elif once:
            raise typer.Exit(1)
        if once:
            return
        time.sleep(every_s)


@app.command()
def models() -> None:
    """List the models that come with this installation, and what each plan keeps."""
    from foveate.models import zoo

    table = Table("model", "plan", "quality", "top-1", "GFLOPs", box=None)
    for name in zoo.names():
        console.print(f"{name}: {zoo.card(name).description}", highlight=False, markup=False)
        profile = zoo.profile(name)
        for m in reversed(profile.ladder if profile else ()):
            accuracy = "" if m.accuracy is None else f"{m.accuracy:.1%}"
            table.add_row(name, m.plan, f"{m.quality:.3f}", accuracy, f"{m.gflops:.3f}")
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
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    known = {f"{PREFIX}{name.upper()}" for name in (*Settings.model_fields, *RENAMED)}
    for name in sorted(os.environ):
        # No error: Kubernetes makes variables of this prefix for a service called foveate.
        if name.startswith(PREFIX) and name not in known:
            logging.warning("%s is not a setting, and is ignored", name)


def tell(line: str) -> None:
    console.print(line, highlight=False, markup=False)


def load_told(name: str, settings: Settings, served: bool = True) -> Any:
    """A warm runner, and on the terminal what takes so long."""
    with complaints.status(f"loading {escape(name)}, and measuring it once if it is new here"):
        return load(name, settings, served)


def main() -> None:
    """Run the command line; what cannot be done is said in one sentence."""
    try:
        app()
    except FoveateError as error:
        complaints.print(f"[red]foveate:[/] {escape(error.detail)}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
