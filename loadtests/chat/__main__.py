"""Measure chats on the served engine: writes docs/benchmarks/chat.{json,md} and its chart.

All parts run one after the other within this process. With --parts, only some are measured, and their figures
replace those in the JSON file, which holds the others.
"""

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from foveate.core.errors import SetupError
from foveate.models.loading.chat_models import ChatModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.vlm.runner import ChatRunner
from loadtests.chat import charts, expired, greedy, latency, loop_lag, overload, throughput
from loadtests.chat.device import SharedDevice
from loadtests.chat.page import page
from loadtests.chat.workload import ChatQuestion, chat_questions
from loadtests.report import FOLDER, RENDER_HELP, Figures, earlier, read, render, write
from loadtests.vlm_model.__main__ import MODEL, questions

log = logging.getLogger("loadtests.chat")
NAME = charts.NAME
PACKAGES = ("torch", "transformers")
SLOTS = 16
COMPARED, OFFERED, EXPIRING = 200, 400, 400
"""Questions that are compared with transformers, offered in an overload, and sent to expire."""
SMALL = 48
"""Questions of a run with --quick."""
Part = Callable[[], Figures]


def parts(
    runner: ChatRunner, device: SharedDevice, asked: Sequence[ChatQuestion], rounds: int, seed: int
) -> dict[str, Part]:
    """What can be measured, by name, in the order of a run. asked: about different pictures."""
    arriving = asked[: throughput.ARRIVALS_PER_SLOT * runner.slots]
    return {
        "greedy": partial(greedy.measure, runner, device, asked[:COMPARED]),
        "throughput": partial(throughput.measure, runner, device, arriving, rounds, seed),
        "latency": partial(latency.measure, runner, device, asked[: runner.slots], rounds),
        "overload": partial(overload.measure, runner, device, asked[:OFFERED], rounds, seed),
        "expired": partial(expired.measure, runner, device, asked[:EXPIRING], seed),
        "lag": partial(loop_lag.measure, runner),
    }


PARTS = ("greedy", "throughput", "latency", "overload", "expired", "lag")


def main() -> None:
    options = arguments()
    if options.render:
        charts.draw(read(NAME), FOLDER)
        print(render(NAME, page(read(NAME))).read_text())
        return
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    logging.getLogger("matplotlib").setLevel("WARNING")
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    device = SharedDevice()
    try:
        runner = device.call(partial(load, options.model, "overload" in options.parts))
        data = questions(runner, 0)
        count = SMALL if options.quick else max(COMPARED, OFFERED, EXPIRING)
        asked = chat_questions(data, count, options.seed)
        measured = parts(runner, device, asked, options.rounds, options.seed)
        settings = {
            "model": f"{runner.card.name}, {runner.full.precision}, {runner.slots} slots",
            "threads of torch": str(threads),
            "rounds": str(options.rounds),
        }
        figures = earlier(NAME, options.out) if set(options.parts) != set(PARTS) else {}
        for name in options.parts:
            log.info("measuring %s", name)
            figures |= measured[name]()
            # After an interruption, --parts measures the parts that are left.
            written = write(NAME, figures, page(figures), settings, PACKAGES, options.out)
    finally:
        device.shut_down()
    charts.draw(figures, options.out)
    print(written.read_text())


def load(model: str, needs_profile: bool) -> ChatRunner:
    """The model. Raises SetupError if it needs a profile and has none: the policy could not choose."""
    runner = ChatModelLoader().load(model, LoadOptions(precision="fp32"), slots=SLOTS)
    if needs_profile and len(runner.card.ladder) < 2:
        raise SetupError(f"{model} has no profile with several plans: run `foveate profile {model}` first")
    return runner


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=MODEL, help="a vision-language model, or its folder (%(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of questions and arrivals (%(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{SMALL} questions, to see whether it runs")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (%(default)s)")
    parser.add_argument("--render", action="store_true", help=RENDER_HELP)
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {min(unknown)!r}; use some of {','.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
