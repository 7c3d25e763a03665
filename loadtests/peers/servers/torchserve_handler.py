"""The handler of the TorchServe worker; `torchserve_server.py` packs this file."""

from typing import Any

from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import PeerAnswer, PeerInference


class TorchServeHandler:
    """The one class of this module, which TorchServe uses as the handler."""

    def initialize(self, context: Any) -> None:
        """Load the model."""
        self.inference = PeerInference(PeerConfig.read())

    def handle(self, data: list[dict[str, bytes]], context: Any) -> list[PeerAnswer]:
        """One answer per request of the batch."""
        return self.inference.answer([bytes(row["body"]) for row in data])
