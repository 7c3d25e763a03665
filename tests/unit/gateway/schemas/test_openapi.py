"""The OpenAPI document: task routes, their parameters and responses, and schemas that resolve."""

import json
import re
from typing import Any

import pytest
from fastapi import FastAPI

from foveate.core.model import CHAT_ROUTE
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.classify import ClassifyRoute
from foveate.gateway.routes.embed import EmbedRoute
from foveate.gateway.routes.segment import SegmentRoute
from foveate.gateway.schemas.openapi import RESPONSE_MODELS, describe_tasks


@pytest.fixture
def document() -> Any:
    app = FastAPI()

    @app.get("/models")
    def models() -> None:
        """The models."""

    describe_tasks(app)
    return app.openapi()


def test_task_routes_are_added_to_those_of_the_framework(document: Any) -> None:
    assert list(document["paths"]) == ["/classify", "/segment", "/embed", CHAT_ROUTE, "/models"]


def test_a_second_call_gives_the_same_document() -> None:
    app = FastAPI()
    describe_tasks(app)
    first = json.dumps(app.openapi())
    assert json.dumps(app.openapi()) == first


def test_every_reference_resolves(document: Any) -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert names >= {model.__name__ for model in RESPONSE_MODELS}
    assert names <= document["components"]["schemas"].keys()


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/classify", {"plan", "top_k", "explain", "labels", "template"}),
        ("/segment", {"plan", "overlay", "points"}),
        ("/embed", {"plan", "normalize"}),
    ],
)
def test_parameters_are_described(document: Any, path: str, own: set[str]) -> None:
    parameters = document["paths"][path]["post"]["parameters"]
    names = [parameter["name"] for parameter in parameters]
    assert len(set(names)) == len(names)
    assert set(names) == own | {
        "model", "x-slo-ms", "x-request-timeout-seconds", "x-min-quality", "x-priority", "x-slo-class",
        "x-plan", "x-request-id",
    }  # fmt: skip
    assert all(parameter["description"] and parameter["required"] is False for parameter in parameters)


@pytest.mark.parametrize("path", ["/classify", "/segment", "/embed"])
def test_every_status_of_a_task_is_a_problem(document: Any, path: str) -> None:
    responses = document["paths"][path]["post"]["responses"]
    assert responses.keys() == {
        "200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504",
    }  # fmt: skip
    for status, response in responses.items():
        assert response["description"]
        if status != "200":
            assert "application/problem+json" in response["content"]


def test_a_mask_may_be_returned_as_png(document: Any) -> None:
    assert "image/png" in document["paths"]["/segment"]["post"]["responses"]["200"]["content"]
    assert "image/png" not in document["paths"]["/classify"]["post"]["responses"]["200"]["content"]


@pytest.mark.parametrize("route", [ClassifyRoute, SegmentRoute, EmbedRoute])
def test_every_option_is_described_wherever_it_may_stand(document: Any, route: type[TaskRoute[Any]]) -> None:
    names = {"model", "plan", *route.own_options}
    operation = document["paths"][f"/{route.task}"]["post"]
    content = operation["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]
    members = content["application/json"]["schema"]
    query = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
    assert query == names
    assert set(form["properties"]) == names | {"file"}
    assert set(members["properties"]) == names | {"data", "url"}
    assert members["oneOf"] == [{"required": ["data"]}, {"required": ["url"]}]
    assert form["required"] == ["file"]
    assert form["additionalProperties"] is members["additionalProperties"] is False
    assert "content-encoding" in operation["requestBody"]["description"]


def test_points_in_json_are_lists_or_text(document: Any) -> None:
    members = document["paths"]["/segment"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    types = [each["type"] for each in members["properties"]["points"]["anyOf"]]
    assert types == ["array", "string", "null"]


def test_labels_in_json_are_a_list_or_text(document: Any) -> None:
    members = document["paths"]["/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    types = [each["type"] for each in members["properties"]["labels"]["anyOf"]]
    assert types == ["array", "string", "null"]


def test_embeddings_are_of_images_alone(document: Any) -> None:
    body = document["paths"]["/embed"]["post"]["requestBody"]
    assert "video/*" not in body["content"] and "clip" not in body["description"]
    assert "video/*" in document["paths"]["/classify"]["post"]["requestBody"]["content"]


def test_an_unsupported_encoding_names_the_supported_ones(document: Any) -> None:
    assert "accept-encoding" in document["paths"]["/classify"]["post"]["responses"]["415"]["headers"]
