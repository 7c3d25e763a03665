"""Headers, SLO classes and routes become an objective, and plans are checked against it."""

import pytest
from pydantic import ValidationError

from foveate.core.errors import BadPlan, BadRequest
from foveate.core.request import Objective
from foveate.core.settings import Settings, SloClass
from foveate.gateway.objective import OWN_HEADERS, check_headers, choose_plan, default_plan, read_objective
from tests.support.fake_runner import FULL, HALF, FakeRunner
from tests.support.gateway import assert_problem, serving_fakes

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
        ({"x-slo-ms": "1_000"}, "x-slo-ms must be a number above 0 to 3.6e+06, not '1_000'"),
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
        ("auto", 0.0, "auto is not a plan; send no plan, and the server chooses one"),
    ],
)
def test_a_pinned_plan_that_contradicts_the_request_is_refused(
    pinned: str, min_quality: float, words: str
) -> None:
    with pytest.raises(BadPlan) as refused:
        choose_plan(CARD, None, pinned, min_quality)
    assert words in refused.value.detail


def checked(*pairs: tuple[str, str], tenant_header: str = "") -> None:
    """Check these headers as the server sees them."""
    raw = [(name.encode(), value.encode()) for name, value in pairs]
    check_headers(raw, dict(pairs), tenant_header)


def test_own_headers_and_those_of_others_pass() -> None:
    checked(*((name, "1") for name in OWN_HEADERS))
    checked(("x-forwarded-for", "a"), ("x-forwarded-for", "b"), ("x-slow", "1"), ("x-miniprofiler-ids", "1"))
    checked(("x-slo-ms", "50"), ("x-slo-ms", "50"))
    checked(("x-slo-tenant", "a"), tenant_header="X-SLO-Tenant")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("x-slo", "did you mean x-slo-ms?"),
        ("x-slo_ms", "did you mean x-slo-ms?"),
        ("x-slo-mss", "did you mean x-slo-ms?"),
        ("x_slo_ms", "did you mean x-slo-ms?"),
        ("x-slo-klass", "did you mean x-slo-class?"),
        ("x-slo-met", "did you mean x-slo-ms?"),
        ("x-min_quality", "did you mean x-min-quality?"),
        ("x-min-qualty", "did you mean x-min-quality?"),
        ("x_plan", "did you mean x-plan?"),
        ("x_request_timeout_seconds", "did you mean x-request-timeout-seconds?"),
        ("x-foveate-plan", "did you mean x-plan?"),
        ("x-foveate-" + "z" * 200, "the server reads x-slo-ms, "),
    ],
)
def test_misspelt_own_headers_are_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(BadRequest) as refused:
        checked(("accept", "*/*"), (name, "1"))
    assert hint in refused.value.detail
    assert name[:60] in refused.value.detail
    assert len(refused.value.detail) < 250


@pytest.mark.parametrize("name", [*OWN_HEADERS, "content-type"])
def test_an_own_header_with_two_values_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=f"the header {name} is sent twice, with different values"):
        checked((name, "1"), ("accept", "*/*"), (name, "2"))


@pytest.mark.anyio
async def test_misspelt_headers_are_a_400() -> None:
    async with serving_fakes() as gateway:
        refused = await gateway.client.post("/classify", content=b"image", headers={"x-slo": "50"})
        assert_problem(refused, 400, "did you mean x-slo-ms?")
        twice = await gateway.client.post(
            "/classify", content=b"image", headers=[("x-slo-ms", "50"), ("x-slo-ms", "60")]
        )
        assert_problem(twice, 400, "x-slo-ms is sent twice")
    assert gateway.runner.batches == []
