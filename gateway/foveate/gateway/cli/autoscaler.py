"""`foveate autoscaler`: decide how many replicas full quality needs, and publish the decision."""

import logging
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.logging import RichHandler

from foveate.core.errors import SetupError
from foveate.gateway.cli.terminal import console, error_console

if TYPE_CHECKING:
    from foveate.autoscaler.service import Autoscaler

log = logging.getLogger(__name__)

RENAMED_OPTIONS = {
    "least": "min_replicas",
    "most": "max_replicas",
    "start_s": "replica_startup_s",
    "calm_s": "downscale_delay_s",
    "every_s": "interval_s",
}
"""Old names of options. They work for one release, with a warning."""

OldSeconds = Annotated[float | None, typer.Option(hidden=True)]


def autoscaler(
    context: typer.Context,
    prometheus: Annotated[str, typer.Argument(help="URL of Prometheus, as in http://127.0.0.1:9090.")],
    min_replicas: Annotated[int, typer.Option(min=0, help="Fewest replicas.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="Most replicas.")] = 10,
    utilisation: Annotated[
        float, typer.Option(help="Share of a replica's time that answers at full quality may fill.")
    ] = 0.75,
    replica_startup_s: Annotated[float, typer.Option(help="Seconds until a new replica serves.")] = 30.0,
    downscale_delay_s: Annotated[
        float, typer.Option(help="Seconds of lower demand before replicas are removed.")
    ] = 300.0,
    interval_s: Annotated[float, typer.Option(min=1, help="Seconds between two decisions.")] = 15.0,
    demand: Annotated[
        str | None, typer.Option(help="PromQL of the full-quality demand; it gives one number.")
    ] = None,
    replicas: Annotated[
        str | None, typer.Option(help="PromQL of the number of replicas; it gives one number.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to publish decisions on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to publish decisions on.")] = 9400,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print decisions and publish none.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Decide once, print the decision and exit.")] = False,
    least: Annotated[int | None, typer.Option(hidden=True, min=0)] = None,
    most: Annotated[int | None, typer.Option(hidden=True, min=1)] = None,
    start_s: OldSeconds = None,
    calm_s: OldSeconds = None,
    every_s: Annotated[float | None, typer.Option(hidden=True, min=1)] = None,
) -> None:
    """Decide how many replicas full quality needs, and publish that for KEDA or an HPA."""
    from foveate.autoscaler import service
    from foveate.autoscaler.policy import ScalingConfig
    from foveate.autoscaler.prometheus import PrometheusClient

    logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler(console=error_console)])
    options = current_options(context)
    try:
        config = ScalingConfig(
            options["min_replicas"],
            options["max_replicas"],
            utilisation,
            options["replica_startup_s"],
            options["downscale_delay_s"],
        )
        queries = service.Queries(demand or service.DEMAND_QUERY, replicas or service.REPLICAS_QUERY)
        scaler = service.Autoscaler(PrometheusClient(prometheus), config, options["interval_s"], queries)
    except ValueError as error:
        raise SetupError(str(error)) from None
    if once:
        decide_once(scaler)
        return
    published = None if dry_run else service.publish(scaler.registry, host, port)
    if published is not None:
        console.print(f"publishing on http://{host}:{published}/metrics", highlight=False)
    while True:
        print_decision(scaler)
        time.sleep(options["interval_s"])


def current_options(context: typer.Context) -> dict[str, Any]:
    """The values of the renamed options, by their current names; each old name that is used is logged.

    Raises SetupError for an option that is given under both names.
    """
    values = {new: context.params[new] for new in RENAMED_OPTIONS.values()}
    for old, new in RENAMED_OPTIONS.items():
        value = context.params[old]
        if value is None:
            continue
        source = context.get_parameter_source(new)
        if source is not None and source.name != "DEFAULT":
            raise SetupError(f"{_flag(old)} is the old name of {_flag(new)}: pass {_flag(new)} alone")
        log.warning("%s is now called %s; the old name will stop working", _flag(old), _flag(new))
        values[new] = value
    return values


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def decide_once(scaler: "Autoscaler") -> None:
    """Print one decision. Exits with status 1 if Prometheus gave no numbers to decide on."""
    if not print_decision(scaler):
        raise typer.Exit(1)


def print_decision(scaler: "Autoscaler") -> bool:
    """Make and print a decision; False if there was none."""
    decision = scaler.step()
    if decision is None:
        return False
    console.print(f"{decision.replicas} replicas: {decision.reason}", highlight=False, markup=False)
    return True
