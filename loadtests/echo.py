"""A bare FastAPI application, the baseline of the overhead bench: `python -m loadtests.echo PORT`."""

import sys

import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/echo")
async def echo(request: Request) -> dict[str, int]:
    """Read the body and answer with its length."""
    return {"bytes": len(await request.body())}


@app.get("/readyz")
async def readyz() -> dict[str, str]:
    """Ready as soon as it answers."""
    return {"status": "ready"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
