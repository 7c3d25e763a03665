"""Run a load test under Locust without its web page."""

from locust import User, task
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser

from foveate.core.errors import SetupError
from loadtests.load.load_test import LoadTest, OnRequest
from loadtests.load.records import EndKind


def run(load_test: LoadTest) -> None:
    """Send the whole schedule from one Locust user. Raises SetupError if the run was interrupted."""

    class ScheduleUser(User):
        @task
        def send(self) -> None:
            load_test.run(fire_event(self.environment.events.request))
            raise StopUser

    environment = Environment(user_classes=[ScheduleUser], catch_exceptions=False)
    runner = environment.create_local_runner()
    runner.start(1, 1)
    if runner.spawning_greenlet is not None:
        runner.spawning_greenlet.join()
    runner.user_greenlets.join()
    runner.quit()
    if len(load_test.exchanges) < len(load_test.spec.requests):
        raise SetupError("the run was interrupted")


def fire_event(event: EventHook) -> OnRequest:
    """Reports each request to the statistics of Locust; every end but "in time" is a failure there."""

    def on_request(slo_class: str, waited_s: float, size: int, kind: EndKind) -> None:
        event.fire(  # type: ignore[no-untyped-call]
            request_type="POST",
            name=slo_class,
            response_time=waited_s * 1e3,
            response_length=size,
            exception=None if kind == "in time" else kind,
            context={},
        )

    return on_request
