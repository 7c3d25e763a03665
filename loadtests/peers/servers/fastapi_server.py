"""Plain FastAPI: one thread computes one request at a time, and a counter limits the running requests.

The framework has no batches and no queue. Blocking work goes to a thread (https://fastapi.tiangolo.com/async/).
When the server has as many requests as it can answer in time, further requests get an HTTPException
(https://fastapi.tiangolo.com/tutorial/handling-errors/). `--limit-concurrency` of uvicorn
(https://uvicorn.dev/settings/) does not help, because it counts idle connections.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, HTTPException, Request

from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import PeerAnswer, PeerInference


def application(config: PeerConfig) -> FastAPI:
    """The application; it loads the model on the thread that computes."""
    app, compute, running = FastAPI(), ThreadPoolExecutor(1), 0
    inference = compute.submit(PeerInference, config).result()

    @app.post("/classify")
    async def classify(request: Request) -> PeerAnswer:
        nonlocal running
        if running >= config.capacity:
            raise HTTPException(503, "busy")
        running += 1
        try:
            body, loop = await request.body(), asyncio.get_running_loop()
            answers = await loop.run_in_executor(compute, inference.answer, [body])
        finally:
            running -= 1
        return answers[0]

    return app


if __name__ == "__main__":
    config = PeerConfig.read()
    uvicorn.run(
        application(config), host="127.0.0.1", port=config.port, log_level="warning", access_log=False
    )
