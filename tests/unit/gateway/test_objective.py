"""Headers, SLO classes and routes become an objective, and plans are checked against it."""

import pytest
from pydantic import ValidationError

from foveate.core.errors import BadRequest
from foveate.core.request import Objective
from foveate.core.settings import Settings, SloClass
from foveate.gateway.objective import read_objective

CLASSES = {
    "interactive": SloClass(deadline_ms=200, min_quality=0.9, priority=2),
    "bulk": SloClass(priority=-3),
}
SERVER = Settings(
    slo_classes=CLASSES,
    default_slo_classes={"/segment": "interactive"},
    max_priority=1,
    tenant_header="X-Tenant",
)


def read(route: str = "/classify", settings: Settings = SERVER, **headers: str) -> Objective:
    dashed = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_objective(dashed, 10.0, settings, route)


def test_without_headers_there_is_no_deadline() -> None:
    assert read() == Objective()


def test_a_class_gives_the_objective() -> None:
    assert read(x_slo_class="interactive") == Objective(10.2, 0.9, 2)
    assert read(x_slo_class="bulk") == Objective(None, 0.0, -3)


def test_a_route_has_a_default_class_that_the_header_overrides() -> None:
    assert read("/segment") == Objective(10.2, 0.9, 2)
    assert read("/segment", x_slo_class="bulk") == Objective(None, 0.0, -3)


def test_headers_override_the_class() -> None:
    objective = read(x_slo_class="interactive", x_slo_ms="50", x_min_quality="0", x_priority="-1")
    assert objective == Objective(10.05, 0.0, -1)
    assert read(x_slo_class="interactive", x_request_timeout_seconds="1").deadline == 11.0


@pytest.mark.parametrize(("priority", "expected"), [("9", 1), ("1", 1), ("+1", 1), ("0", 0), ("-9", -9)])
def test_priorities_are_reduced_to_the_maximum(priority: str, expected: int) -> None:
    assert read(x_priority=priority).priority == expected


def test_a_class_may_exceed_the_maximum_priority() -> None:
    assert read(x_slo_class="interactive", x_priority="9").priority == 2


def test_the_tenant_is_read_from_the_configured_header() -> None:
    assert read(x_tenant="a").tenant == "a"
    assert read(settings=Settings(), x_tenant="a").tenant == ""


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"x-slo-class": "gold"}, "x-slo-class 'gold' is unknown; this server has: bulk, interactive"),
        ({"x-priority": "high"}, "x-priority must be a whole number from -9 to 9"),
        ({"x-priority": "10"}, "x-priority"),
        ({"x-priority": "1.5"}, "x-priority"),
        ({"x-priority": ""}, "x-priority"),
        ({"x-priority": "٣"}, "x-priority"),
    ],
)
def test_invalid_headers_are_refused(headers: dict[str, str], words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_objective(headers, 10.0, SERVER)
    assert words in refused.value.detail


@pytest.mark.parametrize(
    "wrong",
    [
        {"default_slo_classes": {"/classify": "gold"}},
        {"slo_classes": {"gold": {"deadline_ms": 0}}},
        {"slo_classes": {"gold": {"min_quality": 2}}},
        {"slo_classes": {"gold": {"dead_line": 5}}},
    ],
)
def test_invalid_classes_are_refused_at_start(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]


def test_classes_are_read_as_json_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_SLO_CLASSES", '{"gold": {"deadline_ms": 100}}')
    monkeypatch.setenv("FOVEATE_DEFAULT_SLO_CLASSES", '{"/classify": "gold"}')
    assert read(settings=Settings()).deadline == pytest.approx(10.1)
