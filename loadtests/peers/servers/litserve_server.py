"""LitServe: batches of waiting requests, and a timeout for the queue.

`max_batch_size` and `batch_timeout` (https://lightning.ai/docs/litserve/features/batching): on a CPU, fuller
batches have hardly more throughput and a batch timeout only adds latency, so it is short. With a timeout of 0
the worker would poll its queue and use a full core. `timeout`
(https://lightning.ai/docs/litserve/api-reference/litserver) limits the time in the queue alone, so it is the
deadline minus the time of a batch. A request that waits longer gets 504 and no forward. Nothing limits the
length of the queue.
"""

from typing import Annotated

import litserve  # type: ignore[import-not-found]
from fastapi import Body

from foveate.gateway.media.image import Pixels
from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import PeerAnswer, PeerInference

WINDOW_S = 0.002
Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]


class LitServeApi(litserve.LitAPI):  # type: ignore[misc]
    """Decodes on the request, classifies batches."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.inference = PeerInference(PeerConfig.read())

    def decode_request(self, request: Jpeg) -> Pixels:
        """Decode the JPEG."""
        return self.inference.decode(request)

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        """Images have one size and need no stacking here."""
        return inputs

    def predict(self, batch: list[Pixels] | Pixels) -> list[PeerAnswer] | PeerAnswer:
        """Classify a batch, or one image if batching is off."""
        single = not isinstance(batch, list)
        answers = self.inference.classify([batch] if single else batch)  # type: ignore[list-item, arg-type]
        return answers[0] if single else answers

    def unbatch(self, output: list[PeerAnswer]) -> list[PeerAnswer]:
        """One answer per request."""
        return output

    def encode_response(self, output: PeerAnswer) -> PeerAnswer:
        """The answer is JSON already."""
        return output


if __name__ == "__main__":
    config = PeerConfig.read()
    api = LitServeApi(max_batch_size=config.batch, batch_timeout=WINDOW_S, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", timeout=config.max_wait_ms / 1e3)
    server.run(host="127.0.0.1", port=config.port, generate_client_file=False, log_level="warning")
