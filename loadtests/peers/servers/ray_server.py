"""Ray Serve with `@serve.batch`, a bounded queue and a request timeout.

`max_batch_size` and `batch_wait_timeout_s` (https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html):
the wait is 0, as for the other servers. `max_ongoing_requests` is above the batch size, because batches never
fill otherwise. Together with `max_queued_requests` it equals the number of requests that can be answered in
time; further requests get 503 (https://docs.ray.io/en/latest/serve/api/doc/ray.serve.config.BackpressureConfig.html).
`request_timeout_s` cancels late requests (https://docs.ray.io/en/latest/serve/http-guide.html). Blocking code
runs on a separate thread, as recommended in
https://docs.ray.io/en/latest/serve/production-guide/best-practices.html.
"""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import PeerAnswer, PeerInference

config = PeerConfig.read()
ongoing = config.batch + max(1, config.batch // 2)


@serve.deployment(
    max_ongoing_requests=ongoing,
    max_queued_requests=max(1, config.capacity - ongoing),
    ray_actor_options={"num_cpus": 0},
)
class RayClassifier:
    """Classifies batches on its own thread."""

    def __init__(self) -> None:
        self.compute = ThreadPoolExecutor(1)
        self.inference = self.compute.submit(PeerInference, PeerConfig.read()).result()

    @serve.batch(max_batch_size=config.batch, batch_wait_timeout_s=0.0)
    async def classify(self, jpegs: list[bytes]) -> list[PeerAnswer]:
        """Classify a batch."""
        return await asyncio.get_running_loop().run_in_executor(self.compute, self.inference.answer, jpegs)

    async def __call__(self, request: Request) -> JSONResponse:
        return JSONResponse(await self.classify(await request.body()))


if __name__ == "__main__":
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False)
    options = {"host": "127.0.0.1", "port": config.port, "request_timeout_s": config.slo_ms / 1e3}
    serve.start(http_options=options, logging_config={"enable_access_log": False, "log_level": "WARNING"})
    serve.run(RayClassifier.bind(), route_prefix="/classify")  # type: ignore[attr-defined]
    signal.pause()
