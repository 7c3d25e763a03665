"""BentoML: adaptive batching that drops what it will not finish in time, behind a limit to what is inside.

`max_batch_size` and `max_latency_ms` (https://docs.bentoml.com/en/latest/guides/adaptive-batching.html):
the dispatcher fits latency to batch size and answers 503 to what it expects to be late. `max_concurrency`
answers 429, and `timeout` 504 (https://docs.bentoml.com/en/latest/guides/configurations.html).
A batchable method takes lists, so a service of its own makes a list of one from each body, as the page on
batching shows; raw bodies come in through an ASGI application (https://docs.bentoml.com/en/latest/guides/asgi.html).
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import bentoml  # type: ignore[import-not-found]
from fastapi import FastAPI, HTTPException, Request

from loadtests.peers.config import DEADLINE_SHARE, PeerConfig
from loadtests.peers.inference import Answer, PeerInference

config = PeerConfig.read()
promise_s = config.slo_ms / 1e3
app = FastAPI()
QUIET = {"access": {"enabled": False}}


@bentoml.service(workers=1, traffic={"timeout": 60}, logging=QUIET)
class Batcher:
    def __init__(self) -> None:
        self.compute = ThreadPoolExecutor(1)
        self.work = self.compute.submit(PeerInference, config).result()

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True,
        max_batch_size=max(2, config.batch),
        max_latency_ms=int(DEADLINE_SHARE * config.slo_ms),
    )
    async def classify(self, jpegs: list[bytes]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(self.compute, self.work.answer, jpegs)


@bentoml.service(workers=1, traffic={"timeout": promise_s, "max_concurrency": config.capacity}, logging=QUIET)
@bentoml.asgi_app(app, path="/")
class Classifier:
    batcher = bentoml.depends(Batcher)

    @app.post("/classify")
    async def classify(self, request: Request) -> Answer:
        try:
            answers: list[Answer] = await self.batcher.to_async.classify([await request.body()])
        except bentoml.exceptions.BentoMLException as error:
            raise HTTPException(503, "busy") from error
        return answers[0]
