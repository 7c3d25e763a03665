"""What TorchServe's worker runs for a batch; `torchserve_server.py` packs this file."""

from typing import Any

from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import Answer, PeerInference


class Handler:
    def initialize(self, context: Any) -> None:
        self.work = PeerInference(PeerConfig.read())

    def handle(self, data: list[dict[str, bytes]], context: Any) -> list[Answer]:
        return self.work.answer([bytes(row["body"]) for row in data])
