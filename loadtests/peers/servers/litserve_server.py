"""LitServe: batches of what waits already, and a timeout for what has waited too long.

`max_batch_size` and `batch_timeout` (https://lightning.ai/docs/litserve/features/batching): on a processor
fuller batches are hardly faster and a window only costs time, so it is a short one; with none at all the
worker spins on its queue and burns a core. `timeout` (https://lightning.ai/docs/litserve/api-reference/litserver)
bounds the wait in the queue alone, so it is what the promise leaves beside a batch's own time: who waited
longer gets a 504 and no forward. Nothing limits the queue's length.
"""

from typing import Annotated

import litserve  # type: ignore[import-not-found]
from fastapi import Body

from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import Answer, PeerInference, Pixels

WINDOW_S = 0.002
Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]


class Api(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.work = PeerInference(PeerConfig.read())

    def decode_request(self, request: Jpeg) -> Pixels:
        return self.work.decode(request)

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        return inputs

    def predict(self, batch: list[Pixels] | Pixels) -> list[Answer] | Answer:
        alone = not isinstance(batch, list)
        answers = self.work.classify([batch] if alone else batch)  # type: ignore[list-item, arg-type]
        return answers[0] if alone else answers

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> Answer:
        return output


if __name__ == "__main__":
    config = PeerConfig.read()
    api = Api(max_batch_size=config.batch, batch_timeout=WINDOW_S, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", timeout=config.max_wait_ms / 1e3)
    server.run(host="127.0.0.1", port=config.port, generate_client_file=False, log_level="warning")
