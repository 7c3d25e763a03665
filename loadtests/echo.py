"""A bare FastAPI application, what the overhead is measured against: `python -m loadtests.echo PORT`."""

import sys

import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/echo")
async def echo(request: Request) -> dict[str, int]:
    """Read the body and say how long it was."""
    return {"bytes": len(await request.body())}


@app.get("/readyz")
async def readyz() -> dict[str, str]:
    return {"status": "ready"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
