"""Headers, SLO classes and routes become an objective, and plans are checked against it."""

import pytest
from pydantic import ValidationError

from foveate.core.errors import BadPlan, BadRequest
from foveate.core.request import Objective
from foveate.core.settings import Settings, SloClass
from foveate.gateway.objective import choose_plan, default_plan, read_objective
from tests.support.fake_runner import FULL, HALF, FakeRunner

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


CARD = FakeRunner().card


def test_the_policy_chooses_unless_the_settings_name_a_plan() -> None:
    assert default_plan(CARD, Settings()) is None
    assert default_plan(CARD, Settings(plan="evit:0.5")) == HALF
    assert choose_plan(CARD, None, None, 0.95) is None


def test_full_replaces_a_default_plan_below_the_minimum_quality() -> None:
    assert choose_plan(CARD, HALF, None, 0.9) == HALF
    assert choose_plan(CARD, HALF, None, 0.91) == FULL


def test_a_pinned_plan_overrides_the_default() -> None:
    assert choose_plan(CARD, HALF, "full", 0.0) == FULL
    assert choose_plan(CARD, None, "evit:0.5", 0.9) == HALF
    assert choose_plan(CARD, None, "depth:3", 0.0) is not None, "its quality does not matter here"


@pytest.mark.parametrize(
    ("pinned", "min_quality", "words"),
    [
        ("evit:0.5", 0.91, "has quality 0.900, below x-min-quality 0.91"),
        ("depth:3", 0.1, "was never measured"),
        ("other@32", 0.0, "other is not a variant of fake"),
    ],
)
def test_a_pinned_plan_that_contradicts_the_request_is_refused(
    pinned: str, min_quality: float, words: str
) -> None:
    with pytest.raises(BadPlan) as refused:
        choose_plan(CARD, None, pinned, min_quality)
    assert words in refused.value.detail
