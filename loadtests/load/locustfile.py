"""Load tests with the web page of Locust.

`locust -f loadtests/load/locustfile.py --host http://127.0.0.1:8000` starts the page. Each start on the page
is one run; /report shows the report of the last run that ended. A failure in the charts of Locust is a
request that was not answered in time, and response times count from the scheduled send.
"""

import logging
import shlex
import sys
from argparse import ArgumentParser
from html import escape

from locust import LoadTestShape, User, events, task
from locust.env import Environment
from locust.exception import StopUser

from foveate.core.errors import SetupError
from loadtests.load.headless import fire_event
from loadtests.load.load_test import LoadTest
from loadtests.load.machine import raise_file_limit
from loadtests.load.page import page
from loadtests.load.result import LoadTestRun
from loadtests.load.spec import add_options, load_images, run_spec, settings_of

log = logging.getLogger(__name__)


class ScheduleShape(LoadTestShape):
    """Runs one user until the schedule ends, and holds the result of the last run."""

    result: LoadTestRun | None = None
    problem = "No run has ended yet."
    ended = False

    def reset_time(self) -> None:
        """Start a new run."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self.ended = False

    def tick(self) -> tuple[int, float] | None:
        """One user until the run has ended."""
        return None if self.ended else (1, 1.0)


class OpenLoop(User):
    """Sends the whole schedule."""

    @task
    def send(self) -> None:
        """Run the load test and keep its result for the report."""
        shape, options = self.environment.shape_class, self.environment.parsed_options
        if not isinstance(shape, ScheduleShape) or options is None:
            raise RuntimeError("this file defines its own load shape; do not add another one")
        try:
            url = self.environment.host or "http://127.0.0.1:8000"
            load_test = LoadTest(run_spec(options, url, options.rate, load_images(options)))
            load_test.probe()
            load_test.run(fire_event(self.environment.events.request))
            command = shlex.join(["locust", *sys.argv[1:]])
            shape.result = load_test.result(
                options.name or options.shape, command, settings_of(options, options.rate)
            )
        except SetupError as error:
            log.error("%s", error)
            shape.result, shape.problem, self.environment.process_exit_code = None, str(error), 1
        finally:
            shape.ended = True
        raise StopUser


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def options(parser: ArgumentParser, **_: object) -> None:
    """Locust shows these options in the form of its page too."""
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second (default: 50)")
    parser.add_argument("--name", default="", help="the name of the run in the report")
    add_options(parser)


@events.init.add_listener  # type: ignore[untyped-decorator]
def report(environment: Environment, **_: object) -> None:
    """Add the report page to the web page of Locust."""
    raise_file_limit()
    if environment.web_ui is None or environment.web_ui.app is None:
        return

    @environment.web_ui.app.route("/report")
    def last() -> str:
        shape = environment.shape_class
        if not isinstance(shape, ScheduleShape):
            return ""
        return escape(shape.problem) if shape.result is None else page([shape.result])
