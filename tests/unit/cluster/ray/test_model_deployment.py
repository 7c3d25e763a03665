"""The Ray Serve options of a model deployment, and the health of its replicas."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")

from ray.serve.config import AutoscalingConfig

from foveate.cluster.ray.model_deployment import ModelDeployment, deployment_options
from foveate.cluster.ray.scaling import FullQualityDemandPolicy
from foveate.core.errors import RunFailed
from foveate.core.settings import Settings
from foveate.engine.hang import HangLimits
from tests.support.fake_runner import FakeRunner
from tests.support.workers import fake_request, running_workers


def test_the_number_of_replicas_is_fixed_unless_max_replicas_is_larger() -> None:
    assert deployment_options(Settings(replicas=3))["num_replicas"] == 3
    options = deployment_options(Settings(replicas=2, max_replicas=5, scale_downscale_delay_s=60))
    serve_config = AutoscalingConfig(**options["autoscaling_config"])
    assert (serve_config.min_replicas, serve_config.max_replicas) == (2, 5)
    config = FullQualityDemandPolicy(**serve_config.policy.policy_kwargs).config
    assert (config.min_replicas, config.max_replicas, config.downscale_delay_s) == (2, 5, 60)
    assert (
        serve_config.policy.policy_function
        == f"{FullQualityDemandPolicy.__module__}:{FullQualityDemandPolicy.__name__}"
    )


def test_replicas_reserve_the_resources_of_the_settings() -> None:
    settings = Settings(replica_cpus=2, replica_gpus=0.25, replica_resources={"accelerator_type:L4": 0.001})
    assert deployment_options(settings)["ray_actor_options"] == {
        "num_cpus": 2, "num_gpus": 0.25, "resources": {"accelerator_type:L4": 0.001},
    }  # fmt: skip


@pytest.mark.anyio
async def test_a_replica_whose_forward_was_given_up_is_not_healthy() -> None:
    runner = FakeRunner()
    async with running_workers(runner, hang_limits=HangLimits(0.05, 0.2)) as (worker,):
        replica: Any = SimpleNamespace(worker=worker)  # a real one exists only on Ray
        await ModelDeployment.check_health(replica)
        runner.gate.clear()
        inside = asyncio.create_task(worker.cluster.submit(fake_request()))
        async with asyncio.timeout(20):
            while worker.cluster.ready:
                await asyncio.sleep(0.01)
        with pytest.raises(RunFailed):
            await inside
        with pytest.raises(RuntimeError, match="a batch of 1 for fake under"):
            await ModelDeployment.check_health(replica)
