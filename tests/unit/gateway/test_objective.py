"""Headers, SLO classes and routes to an objective."""

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
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_objective(named, 10.0, settings, route)


def test_nothing_asked_is_no_promise() -> None:
    assert read() == Objective()


def test_a_class_is_what_the_server_says_it_is() -> None:
    assert read(x_slo_class="interactive") == Objective(10.2, 0.9, 2)
    assert read(x_slo_class="bulk") == Objective(None, 0.0, -3)


def test_a_route_has_a_class_of_its_own_and_the_header_goes_first() -> None:
    assert read("/segment") == Objective(10.2, 0.9, 2)
    assert read("/segment", x_slo_class="bulk") == Objective(None, 0.0, -3)


def test_headers_go_before_the_class() -> None:
    given = read(x_slo_class="interactive", x_slo_ms="50", x_min_quality="0", x_priority="-1")
    assert given == Objective(10.05, 0.0, -1)
    assert read(x_slo_class="interactive", x_request_timeout_seconds="1").deadline == 11.0


@pytest.mark.parametrize(("asked", "given"), [("9", 1), ("1", 1), ("+1", 1), ("0", 0), ("-9", -9)])
def test_priorities_are_cut_to_what_the_server_allows(asked: str, given: int) -> None:
    assert read(x_priority=asked).priority == given


def test_a_class_may_allow_more_than_the_server_does() -> None:
    assert read(x_slo_class="interactive", x_priority="9").priority == 2


def test_tenants_are_told_by_the_header_that_the_operator_names() -> None:
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
def test_what_makes_no_sense_is_refused(headers: dict[str, str], words: str) -> None:
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
def test_a_server_does_not_start_with_classes_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]


def test_settings_come_as_json_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_SLO_CLASSES", '{"gold": {"deadline_ms": 100}}')
    monkeypatch.setenv("FOVEATE_DEFAULT_SLO_CLASSES", '{"/classify": "gold"}')
    assert read(settings=Settings()).deadline == pytest.approx(10.1)
