"""The command line: `foveate serve`, `foveate predict`, `foveate models`."""

import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from foveate.core.errors import FoveateError, SetupError
from foveate.core.settings import Settings

app = typer.Typer(
    name="foveate",
    help="Inference serving for vision that decides, per request, how much compute to spend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
complaints = Console(stderr=True)

Names = Annotated[Optional[list[str]], typer.Option("--model", "-m", help="Shipped name, timm name or .safetensors file; repeatable.")]
Precision = Annotated[Optional[str], typer.Option(help="auto, fp32, bf16 or fp16; auto measures on this machine.")]
PlanText = Annotated[Optional[str], typer.Option(help="Plan of requests that pin none, as in evit:0.7.")]
Threads = Annotated[Optional[int], typer.Option(help="Threads of one forward; 0: one a core.")]
Device = Annotated[Optional[str], typer.Option(help="auto, cpu or cuda.")]


def settings_from(flags: dict[str, Any]) -> Settings:
    """Flags over FOVEATE_* variables over defaults. Raises SetupError with one sentence."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SetupError(f"setting {where}: {first['msg']}") from None


def load(name: str, settings: Settings) -> Any:
    """A warm runner. Imported here, so that a gateway without torch still has a command line."""
    try:
        from foveate.models.load import load as load_runner
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        raise SetupError(f"{error.name} is not installed: pip install 'foveate[torch]'") from None
    wanted = None if settings.precision == "auto" else settings.precision
    with console.status(f"loading {name}"):
        return load_runner(name, wanted, settings.device, settings.threads, settings.max_batch)


@app.command()
def serve(
    model: Names = None,
    host: Annotated[Optional[str], typer.Option(help="Address to listen on.")] = None,
    port: Annotated[Optional[int], typer.Option(help="Port to listen on.")] = None,
    plan: PlanText = None,
    precision: Precision = None,
    device: Device = None,
    threads: Threads = None,
    max_batch: Annotated[Optional[int], typer.Option(help="Requests in a batch at most; 0: what suits the device.")] = None,
    log_level: Annotated[Optional[str], typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve models over HTTP. Every other setting is a FOVEATE_* environment variable."""
    flags = {
        "models": tuple(model) if model else None, "host": host, "port": port, "plan": plan,
        "precision": precision, "device": device, "threads": threads, "max_batch": max_batch,
        "log_level": log_level,
    }  # fmt: skip
    settings = settings_from(flags)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(message)s", handlers=[RichHandler(console=complaints, show_path=False)]
    )
    runners = [load(name, settings) for name in settings.models]
    from foveate.cluster.local import LocalCluster
    from foveate.core.metrics import Metrics
    from foveate.gateway.app import create_app
    from foveate.gateway.server import server

    metrics = Metrics()
    cluster = LocalCluster(runners, metrics, settings.queue_items, settings.queue_bytes)
    application = create_app(cluster, settings, metrics)
    for runner in runners:
        console.print(f"[bold]{runner.card.name}[/] as {runner.card.full}, batches up to {runner.max_batch}")
    console.print(f"listening on http://{settings.host}:{settings.port}")
    server(application, cluster, settings.host, settings.port, settings.drain_s, settings.log_level).run()


@app.command()
def predict(
    picture: Annotated[Path, typer.Argument(help="A picture file.")],
    model: Annotated[Optional[str], typer.Option("--model", "-m", help="Shipped name, timm name or .safetensors file.")] = None,
    plan: PlanText = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    precision: Precision = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Name what a picture shows, what that cost, and what was looked at."""
    flags = {"models": (model,) if model else None, "plan": plan, "precision": precision, "device": device}
    settings = settings_from(flags)
    runner = load(settings.models[0], settings)
    from foveate.gateway.media import decode_image
    from foveate.models.explain import kept_until

    card = runner.card
    chosen = card.plan(settings.plan)
    runner.check(chosen)
    if not card.labels:
        raise SetupError(f"{card.name} has no classifier; it only makes features")
    try:
        data = picture.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {picture}: {error.strerror}") from None
    pixels = decode_image(data, card.input, chosen.image_size, settings.max_pixels)
    stacked = runner.stack([pixels], chosen)
    runner.run(stacked, chosen)
    started = time.perf_counter()
    result = runner.run(stacked, chosen)[0]
    compute_ms = (time.perf_counter() - started) * 1e3
    if isinstance(result, Exception):
        raise result
    best = sorted(range(len(card.labels)), key=lambda i: -float(result.scores[i]))[:top_k]
    fields = {
        "model": card.name,
        "plan": str(chosen),
        "predictions": [{"label": card.labels[i], "index": i, "score": float(result.scores[i])} for i in best],
        "tokens": result.tokens,
        "tokens_full": card.ladder[-1].tokens,
        "exit_layer": result.exit_layer,
        "gflops": round(result.gflops, 4),
        "gflops_full": round(card.ladder[-1].gflops, 4),
        "compute_ms": round(compute_ms, 2),
    }
    if as_json:
        sys.stdout.write(orjson.dumps(fields, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    steps = runner._steps(chosen)
    show(fields, pixels, kept_until(runner.model, stacked, steps)[0], steps.depth)


def show(fields: dict[str, Any], pixels: Any, until: Any, depth: int) -> None:
    """The answer as a table, the cost in a line, and the picture with what was put aside left blank."""
    table = Table("class", "probability", box=None)
    for row in fields["predictions"]:
        table.add_row(row["label"], f"{row['score']:.1%}")
    console.print(table)
    share = fields["gflops"] / fields["gflops_full"]
    console.print(
        f"[bold]{fields['plan']}[/]: {fields['gflops']:.2f} of {fields['gflops_full']:.2f} GFLOPs ({share:.0%}), "
        f"{fields['tokens']} of {fields['tokens_full']} tokens left, {fields['compute_ms']:.1f} ms"
    )
    side = round(len(until) ** 0.5)
    patch = len(pixels) // side
    colours = pixels.reshape(side, patch, side, patch, 3).mean((1, 3)).astype(int)
    for y in range(side):
        cells = []
        for x in range(side):
            kept = until[y * side + x] == depth
            r, g, b = colours[y, x]
            cells.append(f"[on rgb({r},{g},{b})]  [/]" if kept else "[dim]··[/]")
        console.print("".join(cells))
    console.print(f"[dim]coloured: {int((until == depth).sum())} of {len(until)} patches looked at to the end[/]")


@app.command()
def models() -> None:
    """List the models that come with this installation."""
    from foveate.models import zoo

    table = Table("model", "parameters", "top-1 at full", "what it is", box=None)
    for name in zoo.names():
        card = zoo.card(name)
        table.add_row(name, f"{card.parameters / 1e6:.1f} M", f"{card.top1:.1%}", card.description)
    console.print(table)
    console.print("Any timm ViT by its name, and any local .safetensors file, can be served too.")


def main() -> None:
    """Run the command line; what cannot be done is said in one sentence."""
    try:
        app()
    except FoveateError as error:
        complaints.print(f"[red]foveate:[/] {error.detail}", highlight=False)
        raise SystemExit(2) from None
