"""An engine inside a FastAPI application of your own: batches that know deadlines.

python examples/fastapi_app.py
curl --data-binary @examples/drawn/bicycle.jpg 'http://127.0.0.1:8000/label?deadline_ms=300&min_quality=0.9'
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from foveate.core.errors import FoveateError
from foveate.serve import decode, engine


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the engine as long as the application. A model of your own goes here too: `engine(Model())`."""
    async with engine("vit-t") as app.state.classifier:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/label")
async def label(request: Request, deadline_ms: float = 300, min_quality: float = 0.0) -> dict[str, Any]:
    """The class of an image, within the deadline, under a plan of at least this quality."""
    classifier = request.app.state.classifier
    pixels = await asyncio.to_thread(decode, await request.body(), classifier.card)
    outcome = await classifier.submit(pixels, deadline_s=deadline_ms / 1e3, min_quality=min_quality)
    best = int(outcome.result.scores.argmax())
    return {"label": classifier.card.labels[best], "plan": str(outcome.plan), "batch": outcome.batch_size}


@app.exception_handler(FoveateError)
async def failed(_: Request, error: FoveateError) -> JSONResponse:
    """One typed error for each request that gets no answer: 429 for one that would be late, 422, ..."""
    return JSONResponse({"detail": error.detail}, error.status)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
