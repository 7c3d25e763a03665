"""How the application is laid out on Ray Serve."""

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")

from ray.serve.config import AutoscalingConfig

from foveate.cluster.ray.ray import options_of
from foveate.cluster.ray.scaling import FullQualityDemandPolicy
from foveate.core.settings import Settings
from foveate.gateway.cli.serve_ray import booked_cpus, names_of, reason_of


def test_every_model_gets_a_deployment_of_its_own_name() -> None:
    models = ("vit-t", "org/name", "./weights.safetensors", "org-name", "gateway")
    assert names_of(models, 5) == ["vit-t", "org-name", "weights-safetensors", "org-name-3", "gateway-4"]
    assert names_of((), 2) == ["model", "model-1"]


def test_workers_are_fixed_in_number_unless_there_may_be_more() -> None:
    assert options_of(Settings(replicas=3))["num_replicas"] == 3
    scaled = options_of(Settings(replicas=2, max_replicas=5, scale_downscale_delay_s=60))
    config = AutoscalingConfig(**scaled["autoscaling_config"])
    assert (config.min_replicas, config.max_replicas) == (2, 5)
    policy = FullQualityDemandPolicy(**config.policy.policy_kwargs)
    assert (policy.rules.min_replicas, policy.rules.max_replicas, policy.rules.downscale_delay_s) == (
        2,
        5,
        60,
    )
    assert (
        config.policy.policy_function
        == f"{FullQualityDemandPolicy.__module__}:{FullQualityDemandPolicy.__name__}"
    )


def test_workers_book_what_the_settings_say() -> None:
    settings = Settings(replica_cpus=2, replica_gpus=0.25, replica_resources={"accelerator_type:L4": 0.001})
    assert options_of(settings)["ray_actor_options"] == {
        "num_cpus": 2, "num_gpus": 0.25, "resources": {"accelerator_type:L4": 0.001},
    }  # fmt: skip
    assert booked_cpus(Settings(models=("a", "b"), replicas=1, max_replicas=3, gateways=2)) == 2 + 2 * 3


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("Traceback\n  x\nfoveate.core.errors.SetupError: no model here\n more", "no model here"),
        (
            "[ALERT] : Binding [/tmp/haproxy.cfg:45] for frontend http: "
            "cannot bind socket (Address already in use) for [127.0.0.1:8000]\n[ALERT] more",
            "cannot bind socket (Address already in use) for [127.0.0.1:8000]",
        ),
        ("Traceback\nValueError: it is wrong", "ValueError: it is wrong"),
        ("nothing to see", "nothing to see"),
    ],
)
def test_why_it_did_not_start_is_one_sentence(told: str, reason: str) -> None:
    assert reason_of(RuntimeError(told)) == reason
