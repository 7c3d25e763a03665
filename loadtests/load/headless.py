"""Runs under Locust without its web page."""

from locust import User, task
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser

from foveate.core.errors import SetupError
from loadtests.load.records import Kind
from loadtests.load.sending import Sending, Watch


def run(sending: Sending) -> None:
    """One Locust user sends the whole schedule. Raises SetupError where it does not get through."""

    class OpenLoop(User):
        @task
        def send(self) -> None:
            sending.run(firing(self.environment.events.request))
            raise StopUser

    environment = Environment(user_classes=[OpenLoop], catch_exceptions=False)
    runner = environment.create_local_runner()
    runner.start(1, 1)
    if runner.spawning_greenlet is not None:
        runner.spawning_greenlet.join()
    runner.user_greenlets.join()
    runner.quit()
    if len(sending.exchanges) < len(sending.job.offers):
        raise SetupError("the run was broken off")


def firing(event: EventHook) -> Watch:
    """Tells Locust's statistics; a broken promise is a failure there."""

    def watch(promise: str, waited_s: float, size: int, kind: Kind) -> None:
        event.fire(  # type: ignore[no-untyped-call]
            request_type="POST",
            name=promise,
            response_time=waited_s * 1e3,
            response_length=size,
            exception=None if kind == "in time" else kind,
            context={},
        )

    return watch
