"""One run while it goes on: send a job's requests, show each to whoever watches, judge them afterwards."""

import datetime
import gc
import time
from collections.abc import Callable, Mapping

from loadtests.load.answers import Answer
from loadtests.load.job import Job
from loadtests.load.machine import described
from loadtests.load.records import Exchange, Kind, Record, judge, outcome
from loadtests.load.result import Cost, Run
from loadtests.load.sender import Parcel, Sender, probe
from loadtests.load.target import request_head

Watch = Callable[[str, float, int, Kind], None]
"""Shown the class, seconds from the scheduled time, bytes of the answer, and how it ended."""


class Sending:
    """Judging is left for afterwards, so that it takes no processor time from the server."""

    def __init__(self, job: Job) -> None:
        self.job, self.exchanges, self.cost = job, list[Exchange](), Cost(0.0, 0.0, 0, 0)
        self.began = ""
        names = list(job.promises)
        self._heads = {
            name: request_head(job.target, promise.headers(job.tenant_header))
            for name, promise in job.promises.items()
        }
        self._deadlines = {name: promise.deadline_ms / 1e3 for name, promise in job.promises.items()}
        self._names = [names[n] for n in job.offers.promise.tolist()]

    def probe(self) -> None:
        """One request beforehand, without a deadline. Raises SetupError where it is not answered."""
        target = self.job.target
        probe(target, Parcel(0, 0.0, request_head(target, {}), self.job.pictures.jpegs[0]))

    def run(self, watch: Watch) -> None:
        """Send everything, and return when all of it has ended."""
        offers = self.job.offers
        parcels = [self._parcel(n, at) for n, at in enumerate(offers.at.tolist())]
        sender = Sender(self.job.target, self.job.patience_s, lambda exchange: self._ended(exchange, watch))
        self.began = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        gc.collect()
        gc.disable()  # a collection walks over every request so far, and holds up what is due meanwhile
        begun, cpu = time.perf_counter(), time.process_time()
        try:
            sender.send_all(parcels)
        finally:
            self.cost = Cost(
                time.process_time() - cpu,
                time.perf_counter() - begun,
                sender.pool.opened,
                len(self.exchanges),
            )
            gc.enable()

    def result(self, name: str, command: str, settings: Mapping[str, object]) -> Run:
        """What came of it, once it is over."""
        span_s, records = self.job.span_s, self.records()
        return Run(name, command, self.began, described(), settings, span_s, self.cost, records)

    def records(self) -> list[Record]:
        """What was sent, judged, in the order of the schedule."""
        labels, pictures = self.job.pictures.labels, self.job.offers.picture
        return [
            judge(
                e, self._names[e.index], self._deadline_s(e), labels[pictures[e.index]], self.job.target.parse
            )
            for e in sorted(self.exchanges, key=lambda e: e.index)
        ]

    def _parcel(self, n: int, at: float) -> Parcel:
        body = self.job.pictures.jpegs[self.job.offers.picture[n]]
        return Parcel(n, at, self._heads[self._names[n]], body)

    def _ended(self, exchange: Exchange, watch: Watch) -> None:
        self.exchanges.append(exchange)
        answer = Answer("") if exchange.status == 200 else None
        kind = outcome(exchange, answer, self._deadline_s(exchange))
        waited_s = self.job.patience_s if kind == "unanswered" else exchange.ended - exchange.at
        watch(self._names[exchange.index], waited_s, len(exchange.body), kind)

    def _deadline_s(self, exchange: Exchange) -> float:
        return self._deadlines[self._names[exchange.index]]
