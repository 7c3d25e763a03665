"""The same test with Locust's web page: `locust -f loadtests/load/locustfile.py --host http://127.0.0.1:8000`.

Each start of the page is one run; its report is at /report once it has ended. Failures in Locust's
charts are broken promises, and its response times count from the scheduled send.
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
from loadtests.load.headless import firing
from loadtests.load.job import add_options, album, chosen, job
from loadtests.load.machine import more_files
from loadtests.load.page import page
from loadtests.load.result import Run
from loadtests.load.sending import Sending

log = logging.getLogger(__name__)


class Schedule(LoadTestShape):
    """Keeps the one user for as long as the schedule lasts, and then what came of it."""

    result: Run | None = None
    problem = "No run has ended yet."
    ended = False

    def reset_time(self) -> None:
        super().reset_time()  # type: ignore[no-untyped-call]
        self.ended = False

    def tick(self) -> tuple[int, float] | None:
        return None if self.ended else (1, 1.0)


class OpenLoop(User):
    """Sends the whole schedule."""

    @task
    def send(self) -> None:
        schedule, options = self.environment.shape_class, self.environment.parsed_options
        if not isinstance(schedule, Schedule) or options is None:
            raise RuntimeError("this file brings its own shape of load; start it without another one")
        try:
            url = self.environment.host or "http://127.0.0.1:8000"
            sending = Sending(job(options, url, options.rate, album(options)))
            sending.probe()
            sending.run(firing(self.environment.events.request))
            command = shlex.join(["locust", *sys.argv[1:]])
            schedule.result = sending.result(
                options.name or options.shape, command, chosen(options, options.rate)
            )
        except SetupError as error:
            log.error("%s", error)
            schedule.result, schedule.problem, self.environment.process_exit_code = None, str(error), 1
        finally:
            schedule.ended = True
        raise StopUser


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def options(parser: ArgumentParser, **_: object) -> None:
    """They stand in the web page's form too."""
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second (default: 50)")
    parser.add_argument("--name", default="", help="what the run is called in the report")
    add_options(parser)


@events.init.add_listener  # type: ignore[untyped-decorator]
def report(environment: Environment, **_: object) -> None:
    """A page of its own beside Locust's."""
    more_files()
    if environment.web_ui is None or environment.web_ui.app is None:
        return

    @environment.web_ui.app.route("/report")
    def last() -> str:
        schedule = environment.shape_class
        if not isinstance(schedule, Schedule):
            return ""
        return escape(schedule.problem) if schedule.result is None else page([schedule.result])
