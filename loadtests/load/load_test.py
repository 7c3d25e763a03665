"""One run: send the requests of a spec, report each as it ends, and evaluate them after the run."""

import datetime
import gc
import time
from collections.abc import Callable, Mapping
from functools import partial

from loadtests.load.answers import ParsedAnswer
from loadtests.load.machine import describe_machine
from loadtests.load.records import EndKind, Exchange, RequestRecord, end_kind, evaluate
from loadtests.load.result import GeneratorCost, LoadTestRun
from loadtests.load.sender import ScheduledRequest, Sender, probe
from loadtests.load.spec import RunSpec
from loadtests.load.target import request_head

OnRequest = Callable[[str, float, int, EndKind], None]
"""Called for each request: SLO class, seconds since the scheduled time, bytes of the answer, how it ended."""


class LoadTest:
    """Sends a run. Answers are parsed after the run, so that the generator takes less processor time."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec, self.exchanges, self.cost = spec, list[Exchange](), GeneratorCost(0.0, 0.0, 0, 0)
        self.started_at = ""
        names = list(spec.slo_classes)
        self._heads = {
            name: request_head(spec.target, slo_class.headers(spec.tenant_header))
            for name, slo_class in spec.slo_classes.items()
        }
        self._deadlines = {name: slo_class.deadline_ms / 1e3 for name, slo_class in spec.slo_classes.items()}
        self._first_token_by = {
            name: slo_class.ttft_ms / 1e3 or None for name, slo_class in spec.slo_classes.items()
        }
        self._classes = [names[n] for n in spec.requests.slo_class.tolist()]

    def probe(self) -> None:
        """Send one request without a deadline. Raises SetupError if it gets no valid answer."""
        target = self.spec.target
        probe(target, ScheduledRequest(0, 0.0, request_head(target, {}), self.spec.source.probe))

    def run(self, on_request: OnRequest) -> None:
        """Send all requests, and return when all have ended."""
        requests = [self._request(n, at) for n, at in enumerate(self.spec.requests.at.tolist())]
        sender = Sender(
            self.spec.target, self.spec.answer_timeout_s, lambda exchange: self._ended(exchange, on_request)
        )
        self.started_at = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        gc.collect()
        gc.disable()  # a collection visits every request so far, and would delay the requests due meanwhile
        started, cpu = time.perf_counter(), time.process_time()
        try:
            sender.send_all(requests)
        finally:
            self.cost = GeneratorCost(
                time.process_time() - cpu,
                time.perf_counter() - started,
                sender.pool.opened,
                len(self.exchanges),
            )
            gc.enable()

    def result(self, name: str, command: str, settings: Mapping[str, object]) -> LoadTestRun:
        """The finished run."""
        return LoadTestRun(
            name, command, self.started_at, describe_machine(), settings, self.spec.span_s, self.cost,
            self.records(),
        )  # fmt: skip

    def records(self) -> list[RequestRecord]:
        """The evaluated requests, in the order of the schedule."""
        return [self._record(exchange) for exchange in sorted(self.exchanges, key=lambda e: e.index)]

    def _record(self, exchange: Exchange) -> RequestRecord:
        index, source = exchange.index, self.spec.source
        slo_class = self._classes[index]
        chat = source.chat(index, self._first_token_by[slo_class])
        return evaluate(
            exchange, slo_class, self._deadlines[slo_class], source.label(index), self.spec.target.parse, chat
        )

    def _request(self, index: int, at: float) -> ScheduledRequest:
        body = partial(self.spec.source.body, index)
        return ScheduledRequest(index, at, self._heads[self._classes[index]], body)

    def _ended(self, exchange: Exchange, on_request: OnRequest) -> None:
        self.exchanges.append(exchange)
        whole = exchange.status == 200 and self.spec.source.is_whole(exchange.body)
        answer = ParsedAnswer("") if whole else None
        kind = end_kind(exchange, answer, self._deadline_s(exchange))
        waited_s = self.spec.answer_timeout_s if kind == "unanswered" else exchange.ended - exchange.at
        on_request(self._classes[exchange.index], waited_s, len(exchange.body), kind)

    def _deadline_s(self, exchange: Exchange) -> float:
        return self._deadlines[self._classes[exchange.index]]
