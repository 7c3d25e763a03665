"""What TorchServe's worker runs for a batch; `torchserve_server.py` packs this file."""

from typing import Any

from loadtests.peers.job import Job
from loadtests.peers.work import Answer, Work


class Handler:
    def initialize(self, context: Any) -> None:
        self.work = Work(Job.read())

    def handle(self, data: list[dict[str, bytes]], context: Any) -> list[Answer]:
        return self.work.answer([bytes(row["body"]) for row in data])
