"""JSON bodies of answers to images, and of the model list."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
from PIL import Image

from foveate.core.model import ModelCard
from foveate.core.outcome import Explanation, Outcome, ReductionStage, Result, Timings
from foveate.gateway.media.masks import ClassArea, RenderedMask, encode_mask
from foveate.gateway.schemas.image import (
    Classification,
    Segmentation,
    card_fields,
    classification,
    data_url,
    prediction_fields,
    rung_fields,
    segmentation,
)
from foveate.gateway.schemas.response import ServedRequest
from tests.support.fake_runner import FULL, HALF, FakeRunner

CARD: ModelCard = replace(FakeRunner().card, labels=("cat", "dog", "owl"))


def served(explanation: Explanation | None = None, tiles: int = 1) -> ServedRequest:
    result = Result(np.array([0.2, 0.7, 0.1], np.float32), 5, 12, 0.5, explanation=explanation)
    outcomes = [Outcome(result, FULL, Timings(0.0, 0.0), 1)] * tiles
    return ServedRequest("id-1", CARD, outcomes, False, None, {"total": 0.25})


def test_classes_of_the_same_name_differ_by_index() -> None:
    """As crane, the bird and the machine, and maillot do in ImageNet."""
    card = replace(CARD, labels=("crane", "maillot", "crane"))
    fields = prediction_fields(card, Result(np.array([0.5, 0.1, 0.4], np.float32), 5, 12, 0.5), 2)
    assert [(field["label"], field["index"]) for field in fields] == [("crane", 0), ("crane", 2)]


def test_predictions_are_the_most_probable_classes_in_order() -> None:
    fields = prediction_fields(CARD, Result(np.array([0.2, 0.7, 0.1], np.float32), 5, 12, 0.5), 2)
    assert [(field["label"], field["index"]) for field in fields] == [("dog", 1), ("cat", 0)]
    assert [field["score"] for field in fields] == [0.7, 0.2]


def test_equal_scores_stay_in_the_order_of_classes() -> None:
    fields = prediction_fields(CARD, Result(np.full(3, 0.25, np.float32), 5, 12, 0.5), 9)
    assert [field["index"] for field in fields] == [0, 1, 2]


def test_a_classification_has_the_shape_of_its_schema() -> None:
    body = bytes(classification(served(), 1, False).body)
    parsed = Classification.model_validate_json(body)
    assert (parsed.id, parsed.model, len(parsed.predictions)) == ("id-1", "fake", 1)
    assert parsed.timings_ms == {"total": 250.0}
    assert "explain" not in json.loads(body)


def test_an_explanation_is_one_list_for_each_stage() -> None:
    explanation = Explanation((1, 3), (ReductionStage(4, 3, (0, 0, -1)),), 12)
    parsed = Classification.model_validate_json(bytes(classification(served(explanation), 1, True).body))
    assert parsed.explain is not None
    assert (parsed.explain.grid, parsed.explain.exit_layer) == ((1, 3), 12)
    assert [stage.model_dump() for stage in parsed.explain.stages] == [
        {"block": 4, "tokens": 3, "patches": [0, 0, -1]}
    ]


def test_a_missing_explanation_is_null_and_cached_briefly() -> None:
    response = classification(served(), 1, True)
    assert json.loads(bytes(response.body))["explain"] is None
    assert response.entry.short_lived


def test_a_segmentation_has_the_shape_of_its_schema() -> None:
    mask = np.zeros((4, 5), np.uint8)
    mask[0, :4] = 2
    areas = [ClassArea(2, 1, 4, (0, 0, 4, 1)), ClassArea(1, None, 0, (0, 0, 1, 1))]
    rendered = RenderedMask((5, 4), encode_mask(mask), b"jpeg", areas)
    parsed = Segmentation.model_validate_json(bytes(segmentation(served(tiles=3), rendered).body))
    assert (parsed.width, parsed.height, parsed.windows) == (5, 4, 3)
    assert parsed.segments[0].model_dump() == {
        "label": "dog", "index": 1, "value": 2, "area": 4, "share": 0.2, "box": (0, 0, 4, 1),
    }  # fmt: skip
    assert (parsed.segments[1].label, parsed.segments[1].index) == (None, None)
    kind, _, data = parsed.mask.partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), mask)
    assert parsed.overlay == data_url("image/jpeg", b"jpeg")


def test_without_an_overlay_the_key_is_absent() -> None:
    rendered = RenderedMask((5, 4), b"png", None, [])
    assert "overlay" not in json.loads(bytes(segmentation(served(), rendered).body))


def test_a_card_and_its_rungs_as_json() -> None:
    assert card_fields(CARD) == {
        "name": "fake", "description": "a fake", "task": "classify", "frames": 0, "full": str(FULL),
        "parameters": 0, "classes": 3, "zero_shot": False, "licence": "", "source": "",
    }  # fmt: skip
    assert rung_fields(CARD.ladder[0], FULL) == {
        "plan": str(HALF), "rung": "evit:0.5", "quality": 0.9, "gflops": 0.5, "tokens": 5,
        "latency_ms": {"1": 0.1, "8": 0.2},
    }  # fmt: skip
    assert rung_fields(replace(CARD.ladder[0], latency_s=None), FULL)["latency_ms"] is None
