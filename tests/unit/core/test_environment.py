"""FOVEATE_* variables: spaces, JSON, typing errors, and what Kubernetes sets for a Service."""

import logging

import pytest

from foveate.core.environment import ignored_variables, models_notice, variable
from foveate.core.errors import SetupError
from foveate.core.settings import Settings, read_settings


@pytest.mark.parametrize("name", ["slo_classes", "default_slo_classes", "replica_resources"])
def test_broken_json_is_refused_in_one_sentence_that_names_the_variable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable(name), "{bad")
    with pytest.raises(
        SetupError, match=f"{variable(name)} is not valid JSON .*the value is '{{bad'"
    ) as refused:
        read_settings({})
    assert "\n" not in refused.value.detail


def test_spaces_around_values_and_upper_case_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODELS": " vit-xs, vit-t ,",
        "LOG_LEVEL": "INFO",
        "PORT": " 8001 ",
        "PRECISION": "FP32\n",
        "DEVICE": "CPU",
        "SLO_CLASSES": ' {"x": {"deadline_ms": 50}} ',
    }.items():
        monkeypatch.setenv(f"FOVEATE_{name}", value)
    settings = read_settings({"policy": "FIFO"})
    assert (settings.models, settings.log_level, settings.port) == (("vit-xs", "vit-t"), "info", 8001)
    assert (settings.precision, settings.device, settings.policy) == ("fp32", "cpu", "fifo")
    assert settings.slo_classes["x"].deadline_ms == 50


def test_the_port_that_kubernetes_sets_for_a_service_is_ignored_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FOVEATE_PORT", "tcp://10.0.0.1:80")
    assert read_settings({}).port == Settings.model_fields["port"].default
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "FOVEATE_PORT=tcp://10.0.0.1:80 is ignored: Kubernetes sets it" in record.getMessage()


def test_variables_that_are_no_settings_are_named_with_the_nearest_setting() -> None:
    environment = dict.fromkeys(
        ["FOVEATE_PORT", "FOVEATE_DRAIN_S", "FOVEATE_PROT", "FOVEATE_COLOUR", "PATH", "foveate_quee_items"],
        "",
    )
    assert ignored_variables(Settings.model_fields, environment) == [
        "FOVEATE_COLOUR is not a setting, and is ignored",
        "FOVEATE_PROT is not a setting, and is ignored; did you mean FOVEATE_PORT?",
        "FOVEATE_QUEE_ITEMS is not a setting, and is ignored; did you mean FOVEATE_QUEUE_ITEMS?",
    ]


@pytest.mark.parametrize(
    ("value", "models", "sentence"),
    [
        ("a, b ,", ("a", "b"), "FOVEATE_MODELS names 2 models; a family is given by --model a,b"),
        ("a", ("a",), ""),
        ('["a", "b"]', ("a", "b"), ""),
        ('["a,b"]', ("a,b",), ""),
        ("a,b", ("c",), ""),  # a flag came before the variable
        ("", ("a", "b"), ""),
    ],
)
def test_a_variable_that_is_split_into_models_is_named(
    value: str, models: tuple[str, ...], sentence: str
) -> None:
    assert models_notice(models, {"FOVEATE_MODELS": value}) == sentence
    assert models_notice(models, {}) == ""


def test_all_variables_of_a_service_make_one_sentence() -> None:
    links = ["SERVICE_HOST", "SERVICE_PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR", "CACHE_PORT_6379_TCP"]
    environment = {f"FOVEATE_{name}": "x" for name in links}
    (sentence,) = ignored_variables(Settings.model_fields, environment)
    assert sentence.startswith("FOVEATE_CACHE_PORT_6379_TCP and 4 more are ignored: Kubernetes sets")
    (single,) = ignored_variables(Settings.model_fields, {"FOVEATE_SERVICE_HOST": "x"})
    assert single.startswith("FOVEATE_SERVICE_HOST is ignored: Kubernetes sets")
