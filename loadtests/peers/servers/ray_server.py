"""Ray Serve with `@serve.batch`, a bounded queue and a request timeout.

`max_batch_size` and `batch_wait_timeout_s` (https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html):
a window of 0, as for the others. `max_ongoing_requests` lies above the batch size, or batches never fill;
together with `max_queued_requests` it makes up what can be answered in time, and who comes then gets a 503
(https://docs.ray.io/en/latest/serve/api/doc/ray.serve.config.BackpressureConfig.html). `request_timeout_s`
cancels what is late (https://docs.ray.io/en/latest/serve/http-guide.html). Blocking code runs on a thread of
its own, as https://docs.ray.io/en/latest/serve/production-guide/best-practices.html wants it.
"""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import Answer, PeerInference

config = PeerConfig.read()
ongoing = config.batch + max(1, config.batch // 2)


@serve.deployment(
    max_ongoing_requests=ongoing,
    max_queued_requests=max(1, config.capacity - ongoing),
    ray_actor_options={"num_cpus": 0},
)
class Classifier:
    def __init__(self) -> None:
        self.compute = ThreadPoolExecutor(1)
        self.work = self.compute.submit(PeerInference, PeerConfig.read()).result()

    @serve.batch(max_batch_size=config.batch, batch_wait_timeout_s=0.0)
    async def classify(self, jpegs: list[bytes]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(self.compute, self.work.answer, jpegs)

    async def __call__(self, request: Request) -> JSONResponse:
        return JSONResponse(await self.classify(await request.body()))


if __name__ == "__main__":
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False)
    options = {"host": "127.0.0.1", "port": config.port, "request_timeout_s": config.slo_ms / 1e3}
    serve.start(http_options=options, logging_config={"enable_access_log": False, "log_level": "WARNING"})
    serve.run(Classifier.bind(), route_prefix="/classify")  # type: ignore[attr-defined]
    signal.pause()
