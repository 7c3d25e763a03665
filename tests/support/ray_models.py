"""Models for tests on Ray, which creates them in worker processes. The request body is their command."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.core.outcome import Result
from foveate.core.plan import Plan
from tests.support.fake_runner import FakeRunner
from tests.support.torchvision_ops import import_transformers


class CommandRunner(FakeRunner):
    """Runs the command in its media and reports the id of its process as the number of tokens.

    `die` kills the process; `sleep SECONDS` takes that long; all other media do nothing.
    """

    def __init__(self, name: str = "fake", startup_s: float = 0.0) -> None:
        time.sleep(startup_s)
        super().__init__(name, max_batch=8)

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        for item in batch:
            words = bytes(item).split()
            if words[:1] == [b"die"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if words[:1] == [b"sleep"]:
                time.sleep(float(words[1]))
        results = super().run(batch, plan)
        return [
            Result(result.scores, os.getpid(), result.exit_layer, result.gflops)
            for result in results
            if isinstance(result, Result)
        ]

    def stack(self, media: Sequence[Any], plan: Plan) -> list[Any]:
        return list(media)


def load_checkpoint(name: str) -> Any:
    """The model of a checkpoint of transformers, as `foveate serve` loads it."""
    import_transformers()
    from foveate.models.loading.load import ImageModelLoader
    from foveate.models.loading.loader import LoadOptions

    return ImageModelLoader().load(name, LoadOptions("fp32", "cpu", 1))


def load_chat(folder: str) -> Any:
    """The vision-language model in a folder. Each of its steps of decoding takes 50 ms longer.

    A step kills the process if the folder has a file `die`.
    """
    from foveate.models.vlm import checkpoint
    from foveate.models.vlm.runner import ChatRunner

    runner = ChatRunner(checkpoint.read("vit-x-chat", Path(folder)), slots=2, slot_tokens=256)
    decode = runner.decode

    def slow(sequences: Any) -> Any:
        time.sleep(0.05)
        if Path(folder, "die").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(sequences)

    runner.decode = slow  # type: ignore[method-assign]
    return runner
