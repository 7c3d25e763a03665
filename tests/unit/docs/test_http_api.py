"""The HTTP API page shows every route of the server's own OpenAPI document."""

import re

from docs.generate.http_api import document, page


def test_page_shows_every_route_and_its_links_lead_somewhere() -> None:
    openapi = document()
    text = page(openapi)
    for path, operations in openapi["paths"].items():
        for method in operations:
            assert f"\n## {method.upper()} {path} {{ #" in text
    anchors = re.findall(r"\{ #([\w-]+) \}", text)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= set(anchors)


def test_page_shows_parameters_bodies_and_responses() -> None:
    text = page(
        {
            "paths": {
                "/things/{name}": {
                    "post": {
                        "summary": "make a thing",
                        "parameters": [
                            {"name": "name", "in": "path", "schema": {"type": "string"}},
                            {
                                "name": "x-a",
                                "in": "header",
                                "schema": {"type": "number"},
                                "description": "a | b",
                            },
                        ],
                        "requestBody": {
                            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}
                        },
                        "responses": {
                            "200": {
                                "description": "done",
                                "content": {
                                    "application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}
                                },
                            }
                        },
                    }
                }
            },
            "components": {
                "schemas": {
                    "Thing": {
                        "description": "What was made.",
                        "required": ["box"],
                        "properties": {
                            "box": {
                                "type": "array",
                                "prefixItems": [{"type": "integer"}, {"type": "integer"}],
                            },
                            "times": {"type": "object", "additionalProperties": {"type": "number"}},
                            "label": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                        },
                    }
                }
            },
        }
    )
    assert "## POST /things/{name} { #post-things--name }\n\nMake a thing.\n" in text
    assert "**Path parameters**\n\n| Name | Type | Meaning |\n| --- | --- | --- |\n" in text
    assert "| <code>x-a</code> | number | A &#124; b |" in text
    assert "| <code>image/*</code> | bytes |" in text
    assert "| <code>200</code> | Done | <code>application/json</code>: [Thing](#schema-thing) |" in text
    assert "### Thing { #schema-thing }\n\nWhat was made.\n" in text
    assert "| <code>box</code> | [integer, integer] |  |" in text
    assert "| <code>times</code> | object of number, optional |  |" in text
    assert "| <code>label</code> | string or null, optional |  |" in text
