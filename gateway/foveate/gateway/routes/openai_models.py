"""GET /v1/models: the models that answer chats, as OpenAI's API lists them."""

import time
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response

from foveate.cluster import Cluster
from foveate.core.errors import UnknownModel
from foveate.core.model import ModelCard
from foveate.gateway.routes.context import request_id_of
from foveate.gateway.routes.model_selection import ModelSelector
from foveate.gateway.schemas.chat import OpenAiError, OpenAiModel, OpenAiModelList
from foveate.gateway.schemas.openai_errors import openai_error

OWNER = "foveate"


def add_openai_models(app: FastAPI, cluster: Cluster) -> None:
    """Add the routes that list the models of task `chat`. GET /models lists those of all tasks."""
    models, created = ModelSelector("chat", cluster.cards()), int(time.time())

    @app.get("/v1/models", response_model=OpenAiModelList)
    async def list_chat_models() -> Response:
        """The models that answer chats."""
        data = [_fields(card, created) for card in models.cards.values()]
        return _json({"object": "list", "data": data})

    @app.get(
        "/v1/models/{name:path}",
        response_model=OpenAiModel,
        responses={404: {"description": "Unknown model", "model": OpenAiError}},
    )
    async def show_chat_model(name: str, request: Request) -> Response:
        """One model that answers chats."""
        try:
            return _json(_fields(models.by_name(name, False), created))
        except UnknownModel as error:
            return openai_error(error, request_id_of(request.headers.get("x-request-id", "")))


def _fields(card: ModelCard, created: int) -> dict[str, Any]:
    return {"id": card.name, "object": "model", "created": created, "owned_by": OWNER}


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
