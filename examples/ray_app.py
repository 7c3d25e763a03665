"""An engine inside a Ray Serve deployment of your own, in the place of `@serve.batch`.

pip install 'foveate[ray,torch]'
python examples/ray_app.py
curl --data-binary @examples/drawn/bicycle.jpg 'http://127.0.0.1:8000/?deadline_ms=300&min_quality=0.9'
"""

import asyncio
import os
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from foveate.core.errors import FoveateError
from foveate.serve import decode, engine


# The engine holds the requests and knows their deadlines, so that Serve has to let all of them through.
@serve.deployment(max_ongoing_requests=1000)
class Classifier:
    """One replica: one engine."""

    async def __init__(self) -> None:  # type: ignore[misc]
        self.engine = engine("vit-t", threads=1)
        self.engine.start()

    async def __call__(self, request: Request) -> Any:
        """The class of the image in the body, or the error in JSON."""
        query = request.query_params
        try:
            pixels = await asyncio.to_thread(decode, await request.body(), self.engine.card)
            outcome = await self.engine.submit(
                pixels,
                deadline_s=float(query.get("deadline_ms", 300)) / 1e3,
                min_quality=float(query.get("min_quality", 0)),
            )
        except FoveateError as error:
            return JSONResponse({"detail": error.detail}, error.status)
        best = int(outcome.result.scores.argmax())
        return {
            "label": self.engine.card.labels[best],
            "plan": str(outcome.plan),
            "batch": outcome.batch_size,
        }

    async def __del__(self) -> None:
        """Called by Serve when the replica stops, after its last request."""
        await self.engine.close()


application: serve.Application = Classifier.bind()  # type: ignore[attr-defined]

if __name__ == "__main__":
    serve.start(http_options={"port": int(os.environ.get("PORT", "8000"))})
    serve.run(application, blocking=True)
