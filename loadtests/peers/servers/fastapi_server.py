"""Plain FastAPI: one thread computes, one request at a time, and a counter at the door.

The framework knows no batches and no queue. Blocking work goes to a thread
(https://fastapi.tiangolo.com/async/), and what comes when as many requests are inside as can be answered in
time gets an HTTPException (https://fastapi.tiangolo.com/tutorial/handling-errors/). uvicorn's own
`--limit-concurrency` (https://uvicorn.dev/settings/) is no use here: it counts idle connections.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, HTTPException, Request

from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import Answer, PeerInference


def application(config: PeerConfig) -> FastAPI:
    app, compute, inside = FastAPI(), ThreadPoolExecutor(1), 0
    work = compute.submit(PeerInference, config).result()

    @app.post("/classify")
    async def classify(request: Request) -> Answer:
        nonlocal inside
        if inside >= config.capacity:
            raise HTTPException(503, "busy")
        inside += 1
        try:
            body, loop = await request.body(), asyncio.get_running_loop()
            answers = await loop.run_in_executor(compute, work.answer, [body])
        finally:
            inside -= 1
        return answers[0]

    return app


if __name__ == "__main__":
    config = PeerConfig.read()
    uvicorn.run(
        application(config), host="127.0.0.1", port=config.port, log_level="warning", access_log=False
    )
