"""The names, the reservations and the failure messages of the application on Ray Serve."""

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")

from starlette.types import Message, Receive, Scope, Send

from foveate.core.settings import Settings
from foveate.gateway.cli.serve_ray import (
    StripRequestId,
    deployment_names,
    failure_reason,
    with_reserved_threads,
)


def test_every_model_gets_a_deployment_name_of_its_own() -> None:
    models = ("vit-t", "org/name", "./weights.safetensors", "org-name", "gateway")
    names = ["vit-t", "org-name", "weights-safetensors", "org-name-3", "gateway-4"]
    assert deployment_names(models, 5) == names
    assert deployment_names((), 2) == ["model", "model-1"]


def test_a_forward_has_as_many_threads_as_its_replica_reserves_cpus() -> None:
    assert with_reserved_threads(Settings(replica_cpus=3)).threads == 3
    assert with_reserved_threads(Settings(replica_cpus=0.1)).threads == 1
    assert with_reserved_threads(Settings(replica_cpus=3, threads=2)).threads == 2


@pytest.mark.anyio
async def test_the_request_id_header_of_the_application_is_removed() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-request-id", b"abc"), (b"x-cache", b"hit")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x-request-id"})

    async def receive() -> Message:
        raise AssertionError("nothing to receive")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await StripRequestId(application)({"type": "http"}, receive, send)
    assert sent[0]["headers"] == [(b"x-cache", b"hit")]
    assert sent[1]["body"] == b"x-request-id"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Traceback\n  x\nfoveate.core.errors.SetupError: no model here\n more", "no model here"),
        (
            "[ALERT] : Binding [/tmp/haproxy.cfg:45] for frontend http: "
            "cannot bind socket (Address already in use) for [127.0.0.1:8000]\n[ALERT] more",
            "cannot bind socket (Address already in use) for [127.0.0.1:8000]",
        ),
        ("Traceback\nValueError: it is wrong", "ValueError: it is wrong"),
        ("an unknown message", "an unknown message"),
    ],
)
def test_the_failure_reason_is_one_sentence(message: str, reason: str) -> None:
    assert failure_reason(RuntimeError(message)) == reason
