"""One outcome for each request, whatever happens: counted, traced, and rendered if it is a failure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response

from foveate.core.errors import Draining, FoveateError, Unavailable
from foveate.core.model import Task
from foveate.gateway.routes.context import RequestLog, request_id_of
from foveate.gateway.routes.services import RouteServices

log = logging.getLogger(__name__)

Work = Callable[[str, RequestLog], Awaitable[Response]]
"""Answers one request, whose id it is given. It fills in the log on the way. Raises FoveateError."""
RenderError = Callable[[FoveateError, str], Response]
"""The response of an error to the request with an id."""


class RequestCounter:
    """Runs the requests of one route."""

    def __init__(self, services: RouteServices, task: Task, path: str, render_error: RenderError) -> None:
        self.services, self.task, self.path = services, task, path
        self.render_error = render_error

    async def run(self, headers: Mapping[str, str], arrived: float, work: Work) -> Response:
        """The answer, or the rendered error of its failure. Counts exactly one outcome.

        headers: names in lower case. arrived: monotonic clock seconds.
        """
        request_id = request_id_of(headers.get("x-request-id", ""))
        outcome, request_log = "failed", RequestLog()
        try:
            response = await work(request_id, request_log)
            outcome = "ok"
        except FoveateError as error:
            outcome = error.outcome
            response = self.render_error(error, request_id)
            self._count_failure(error, request_log)
        except asyncio.CancelledError:
            # At the end of a drain the server cancels the remaining requests; they get an answer too.
            task = asyncio.current_task()
            if not self.services.cluster.draining or task is None:
                outcome = "cancelled"
                raise
            task.uncancel()
            draining = Draining("the server shut down before the request was complete")
            outcome, response = draining.outcome, self.render_error(draining, request_id)
            self._count_failure(draining, request_log)
        except Exception:
            log.exception("request %s failed", request_id)
            response = self.render_error(FoveateError("the server failed on this request"), request_id)
        finally:
            self.services.metrics.requests.labels(request_log.model, self.task, outcome).inc()
        if self.services.tracing is not None:
            self.services.tracing.record(self.path, request_log.model, outcome, arrived, headers, response)
        return response

    def _count_failure(self, error: FoveateError, request_log: RequestLog) -> None:
        """Count missed deadlines and refusals; log what is the server's own fault."""
        model, metrics = request_log.model, self.services.metrics
        if request_log.has_deadline and error.outcome in ("refused", "expired", "failed"):
            metrics.slo.labels(model, "false").inc()
        if isinstance(error, Unavailable):
            metrics.refused.labels(model, error.reason).inc()
        elif error.status == 500:
            log.error("inference failed: %s", error.detail, exc_info=error.__cause__)
