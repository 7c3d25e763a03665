"""Settings are read from flags and variables, and invalid values are refused."""

import ast
import inspect
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from foveate.core import settings
from foveate.core.errors import SetupError
from foveate.core.settings import DEFAULTS, Settings, SloClass, read_settings
from foveate.gateway.cli.main import settings_from


def test_flags_override_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_PORT", "9000")
    monkeypatch.setenv("FOVEATE_MODELS", "vit-t,vit_tiny_patch16_224")
    server = settings_from({"port": None, "host": "0.0.0.0"})  # noqa: S104 -- a value, nothing listens
    assert (server.port, server.host) == (9000, "0.0.0.0")  # noqa: S104
    assert server.models == ("vit-t", "vit_tiny_patch16_224")


def test_the_table_of_defaults_is_that_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the server that are used without settings take their limits from it."""
    for name in DEFAULTS:
        monkeypatch.delenv(f"FOVEATE_{name.upper()}", raising=False)
    assert dict(DEFAULTS) == dict(Settings())


def test_the_default_address_is_local() -> None:
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize("models", ["", ",", "a,a"])
def test_models_are_required_and_unique(monkeypatch: pytest.MonkeyPatch, models: str) -> None:
    monkeypatch.setenv("FOVEATE_MODELS", models)
    with pytest.raises(ValidationError):
        Settings()


def test_an_invalid_setting_is_refused_in_one_sentence() -> None:
    with pytest.raises(SetupError) as refused:
        settings_from({"precision": "fp8"})
    assert "precision" in refused.value.detail
    assert "\n" not in refused.value.detail


def test_old_names_of_settings_work_for_one_release_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("foveate_drain_s", "7")
    monkeypatch.setenv("FOVEATE_PATIENCE_S", "8")
    monkeypatch.setenv("FOVEATE_DEFAULT_DEADLINE_S", "9")
    old: dict[str, Any] = {"body_s": 3, "policy": "promise"}
    server = Settings(**old)
    assert (server.drain_timeout_s, server.default_deadline_s) == (7, 9), "the new name wins"
    assert (server.body_timeout_s, server.policy) == (3, "slo")
    warned = [record.message for record in caplog.records]
    assert len(warned) == 4
    assert "drain_s (FOVEATE_DRAIN_S) is now called drain_timeout_s (FOVEATE_DRAIN_TIMEOUT_S)" in warned[1]


def test_every_setting_has_a_description_on_its_page() -> None:
    tree = ast.parse(inspect.getsource(settings))
    for model in (Settings, SloClass):
        body = next(
            node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == model.__name__
        ).body
        described = {
            node.target.id
            for node, text in pairwise(body)
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        }
        assert described == set(model.model_fields)


def test_an_argument_under_its_old_name_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_DRAIN_TIMEOUT_S", "9")
    monkeypatch.setenv("FOVEATE_POLICY", "promise")
    old: dict[str, Any] = {"drain_s": 60}
    settings = Settings(**old)
    assert (settings.drain_timeout_s, settings.policy) == (60, "slo")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"PORT": "abc"}, "FOVEATE_PORT: .*valid integer.*; the value is 'abc'"),
        ({"PORT": ""}, "FOVEATE_PORT: .*valid integer.*; the value is ''"),
        ({"PORT": "70000"}, "FOVEATE_PORT: .*less than or equal to 65535"),
        ({"BODY_TIMEOUT_S": "inf"}, "FOVEATE_BODY_TIMEOUT_S: .*finite"),
        ({"BODY_TIMEOUT_S": "nan"}, "FOVEATE_BODY_TIMEOUT_S: .*finite"),
        ({"MODELS": "vit-t,vit-t"}, "FOVEATE_MODELS: must name at least one model, and each model once"),
        ({"SLO_CLASSES": "[1]"}, "FOVEATE_SLO_CLASSES: .*dictionary"),
        ({"SLO_CLASSES": '{"x": {"deadline": 5}}'}, "FOVEATE_SLO_CLASSES.x.deadline: Extra inputs"),
        (
            {"SLO_CLASSES": '{"x": {}}', "DEFAULT_SLO_CLASSES": '{"classify": "x"}'},
            "FOVEATE_DEFAULT_SLO_CLASSES: there is no route 'classify'; the routes are /classify, /segment",
        ),
        ({"DEFAULT_SLO_CLASSES": '{"/classify": "y"}'}, "default_slo_classes names 'y', which is not in"),
        ({"TENANT_HEADER": "x tenant"}, "FOVEATE_TENANT_HEADER: must be the name of an HTTP header"),
        ({"TENANT_HEADER": "x-tenant:"}, "FOVEATE_TENANT_HEADER: must be the name of an HTTP header"),
        ({"TRACES": "127.0.0.1:4318"}, "FOVEATE_TRACES: must be a URL"),
        ({"TRACES": "http://"}, "FOVEATE_TRACES: must be a URL"),
        ({"CACHE": "redis"}, "FOVEATE_CACHE: must be memory or redis://HOST:PORT/DB"),
        ({"CACHE": "redis://"}, "FOVEATE_CACHE: must be memory or redis://HOST:PORT/DB"),
        ({"CACHE": "redis://host:abc/0"}, "FOVEATE_CACHE: must be memory or redis://HOST:PORT/DB"),
        ({"CACHE": "redis://host/cache"}, "FOVEATE_CACHE: must be memory or redis://HOST:PORT/DB"),
        ({"REPLICA_RESOURCES": '{"gpu": -1}'}, "FOVEATE_REPLICA_RESOURCES.gpu: .*greater than 0"),
        ({"MAX_BODY_BYTES": "2000", "IN_FLIGHT_BYTES": "1000"}, r"max_body_bytes \(2000\) is over in_flight"),
        ({"MAX_VIDEO_BYTES": "2000", "SPOOL_BYTES": "1000"}, r"max_video_bytes \(2000\) is over spool_bytes"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_start(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"FOVEATE_{name}", value)
    with pytest.raises(SetupError, match=sentence) as refused:
        read_settings({})
    assert "\n" not in refused.value.detail


def test_the_password_of_a_url_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", "redis://:secret@host:abc/0")
    with pytest.raises(SetupError, match="FOVEATE_CACHE: must be") as refused:
        read_settings({})
    assert "secret" not in refused.value.detail


@pytest.mark.parametrize(
    "cache", ["memory", "redis://h:6379/1", "rediss://u:p@h/0?x=1", "unix:///run/redis.sock"]
)
def test_addresses_of_caches(cache: str) -> None:
    assert Settings(cache=cache).cache == cache


def test_origins_are_a_list_of_schemes_with_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().cors_origins == ()
    monkeypatch.setenv("FOVEATE_CORS_ORIGINS", "https://app.example.org, http://localhost:3000")
    assert Settings().cors_origins == ("https://app.example.org", "http://localhost:3000")
    assert Settings(cors_origins=("*",)).cors_origins == ("*",)


@pytest.mark.parametrize("origin", ["app.example.org", "https://a.org/", "https://a.org/path", "https://"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="an origin is a scheme and a host"):
        Settings(cors_origins=(origin,))


def test_hosts_of_urls_are_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().url_hosts == Settings().url_private_hosts == ()
    monkeypatch.setenv("FOVEATE_URL_HOSTS", "images.example.org, *.cdn.example:8443,*, [2606:2800::1]")
    assert Settings().url_hosts == ("images.example.org", "*.cdn.example:8443", "*", "[2606:2800::1]")
    monkeypatch.setenv("FOVEATE_URL_PRIVATE_HOSTS", "minio.storage:9000,10.0.0.5:9000")
    assert Settings().url_private_hosts == ("minio.storage:9000", "10.0.0.5:9000")


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("url_hosts", "https://example.org", "write hosts as in images.example.org"),
        ("url_hosts", "example.org/a", "the host is no host name"),
        ("url_hosts", "127.1", "another spelling"),
        ("url_hosts", "example.org:0", "the port is no number"),
        ("url_private_hosts", "minio.storage", "an exact name or address with its port"),
        ("url_private_hosts", "*:9000", "an exact name or address with its port"),
        ("url_private_hosts", "*.storage:9000", "an exact name or address with its port"),
        ("url_private_hosts", "*", "an exact name or address with its port"),
    ],
)
def test_entries_that_are_no_hosts_are_refused(name: str, entry: str, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        read_settings({name: (entry,)})
