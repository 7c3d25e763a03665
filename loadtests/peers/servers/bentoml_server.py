"""BentoML: adaptive batching that drops requests it expects to be late, and a limit on running requests.

`max_batch_size` and `max_latency_ms` (https://docs.bentoml.com/en/latest/guides/adaptive-batching.html): the
dispatcher fits latency to batch size and answers 503 to requests that it expects to be late. Requests over
`max_concurrency` get 429, requests over `timeout` get 504
(https://docs.bentoml.com/en/latest/guides/configurations.html). A batchable method takes lists, so a separate
service makes a list of one from each body, as the page on batching shows. Raw bodies need an ASGI application
(https://docs.bentoml.com/en/latest/guides/asgi.html).
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import bentoml  # type: ignore[import-not-found]
from fastapi import FastAPI, HTTPException, Request

from loadtests.peers.config import DEADLINE_SHARE, PeerConfig
from loadtests.peers.inference import PeerAnswer, PeerInference

config = PeerConfig.read()
deadline_s = config.slo_ms / 1e3
app = FastAPI()
QUIET = {"access": {"enabled": False}}


@bentoml.service(workers=1, traffic={"timeout": 60}, logging=QUIET)
class BentoBatcher:
    """Classifies batches on its own thread."""

    def __init__(self) -> None:
        self.compute = ThreadPoolExecutor(1)
        self.inference = self.compute.submit(PeerInference, config).result()

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True,
        max_batch_size=max(2, config.batch),
        max_latency_ms=int(DEADLINE_SHARE * config.slo_ms),
    )
    async def classify(self, jpegs: list[bytes]) -> list[PeerAnswer]:
        """Classify a batch."""
        return await asyncio.get_running_loop().run_in_executor(self.compute, self.inference.answer, jpegs)


@bentoml.service(
    workers=1, traffic={"timeout": deadline_s, "max_concurrency": config.capacity}, logging=QUIET
)
@bentoml.asgi_app(app, path="/")
class BentoClassifier:
    """Passes each body to the batcher."""

    batcher = bentoml.depends(BentoBatcher)

    @app.post("/classify")
    async def classify(self, request: Request) -> PeerAnswer:
        """Classify one image; 503 if the batcher drops it."""
        try:
            answers: list[PeerAnswer] = await self.batcher.to_async.classify([await request.body()])
        except bentoml.exceptions.BentoMLException as error:
            raise HTTPException(503, "busy") from error
        return answers[0]
