"""Checks the Dockerfile, Compose and Kubernetes files against their schemas and against each other."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from foveate.core.metrics import Metrics
from foveate.core.settings import Settings

ROOT = Path(__file__).parents[2]
YAML = sorted([*ROOT.glob("k8s/**/*.yaml"), *ROOT.glob("monitoring/**/*.yml"), ROOT / "docker-compose.yml"])
OVERLAYS = sorted(ROOT.glob("k8s/**/kustomization.yaml"))
CUSTOM_APIS = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1", "kustomize.config.k8s.io/v1beta1", "ray.io/v1")
"""APIs outside Kubernetes; their schemas are not installed."""


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(path.read_text())


def base(kind: str) -> dict[str, Any]:
    """The only document of a kind in k8s/base."""
    paths = sorted(ROOT.glob("k8s/base/*.yaml"))
    (document,) = (document for path in paths for document in documents(path) if document["kind"] == kind)
    return document


def path_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", YAML, ids=path_id)
def test_yaml_passes_the_linter(path: Path) -> None:
    config = YamlLintConfig("{extends: relaxed, rules: {line-length: {max: 120}}}")
    assert not list(linter.run(path.read_text(), config))


@pytest.mark.parametrize("path", sorted(ROOT.glob("k8s/**/*.yaml")), ids=path_id)
def test_kubernetes_resources_match_their_schemas(path: Path) -> None:
    for document in documents(path):
        if document["apiVersion"] not in CUSTOM_APIS:
            kubernetes_validate.validate(document, "1.30", strict=True)


def test_compose_matches_its_schema_and_mounts_files_that_exist() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, "docker-compose.yml"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    services = next(documents(ROOT / "docker-compose.yml"))["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            assert (ROOT / volume.partition(":")[0]).is_file(), volume
        settings = {key for key in service.get("environment", {}) if key.startswith("FOVEATE_")}
        assert settings <= {f"FOVEATE_{field.upper()}" for field in Settings.model_fields}
        assert set(service.get("depends_on", ())) <= set(services)


def test_the_dockerfile_passes_its_linter_and_copies_files_that_exist() -> None:
    program = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([program, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    text = (ROOT / "Dockerfile").read_text()
    for line in text.splitlines():
        if line.startswith("COPY ") and not line.startswith("COPY --from"):
            assert all((ROOT / part).exists() for part in line.split()[1:-1]), line


@pytest.mark.parametrize("path", OVERLAYS, ids=path_id)
def test_overlays_refer_to_files_and_fields_that_exist(path: Path) -> None:
    (overlay,) = documents(path)
    for resource in overlay["resources"]:
        target = path.parent / resource
        assert target.is_file() or (target / "kustomization.yaml").is_file(), resource
    for patch in overlay.get("patches", ()):
        document = base(patch["target"]["kind"])
        assert document["metadata"]["name"] == patch["target"]["name"]
        for step in yaml.safe_load(patch["patch"]):
            *parents, last = (part.replace("~1", "/") for part in step["path"].split("/")[1:])
            node: Any = document
            for part in parents:
                node = node[int(part) if isinstance(node, list) else part]
            assert (last in node) == (step["op"] == "remove"), step


def test_selectors_probes_and_ports_agree() -> None:
    deployment, service = base("Deployment"), base("Service")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        base("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        base("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports)
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    settings = Settings(**{key.removeprefix("FOVEATE_").lower(): value for key, value in variables.items()})
    assert ports["http"] == settings.port
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause + settings.drain_timeout_s < grace
    assert {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")} == {
        "/livez", "/readyz",
    }  # fmt: skip
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp"}  # noqa: S108


def ray_service() -> dict[str, Any]:
    (service,) = documents(ROOT / "k8s/ray/rayservice.yaml")
    return service


def test_the_ray_application_matches_its_schema_and_can_be_built() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")
    from ray.serve.schema import ServeDeploySchema

    from foveate.gateway.cli import serve_ray

    service = ray_service()
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == f"{serve_ray.__name__}:{serve_ray.build.__name__}"
    bound = serve_ray.build(application.args)
    settings = Settings(**application.args)
    assert bound._bound_deployment.name == "gateway"
    assert bound._bound_deployment.num_replicas == settings.gateways
    assert config.http_options.port == Settings().port
    for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert settings.drain_timeout_s + 35 < pod["terminationGracePeriodSeconds"]
        (container,) = pod["containers"]
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        assert variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
        assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    gateways = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["rayStartParams"]["resources"]
    assert settings.gateway_resources.keys() <= json.loads(gateways.strip("'")).keys()


def test_the_pods_of_ray_match_their_schema_and_are_selected() -> None:
    cluster = ray_service()["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"]["template"]]
    pods += [group["template"] for group in cluster["workerGroupSpecs"]]
    for number, pod in enumerate(pods):
        as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"} | pod["metadata"]}
        kubernetes_validate.validate(as_pod | {"spec": pod["spec"]}, "1.30", strict=True)
        labels = pod["metadata"]["labels"]
        for file in ("disruption", "network"):
            (document,) = documents(ROOT / f"k8s/ray/{file}.yaml")
            selector = document["spec"].get("selector") or document["spec"]["podSelector"]
            # KubeRay adds the label of the group.
            assert selector["matchLabels"].items() <= labels.items() | {("ray.io/group", "gateways")}


def test_a_gateway_for_ray_needs_no_torch() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from foveate.gateway.cli import serve_ray; serve_ray.build({})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_keda_queries_a_metric_that_the_autoscaler_publishes() -> None:
    (scaled_object,) = documents(ROOT / "k8s/overlays/keda/scaledobject.yaml")
    assert scaled_object["spec"]["scaleTargetRef"]["name"] == base("Deployment")["metadata"]["name"]
    (trigger,) = scaled_object["spec"]["triggers"]
    assert "foveate_autoscaler_desired_replicas" in trigger["metadata"]["query"]
    assert "foveate_full_quality_seconds" in {family.name for family in Metrics().registry.collect()}


def test_the_autoscaler_starts_with_the_arguments_of_its_manifest() -> None:
    (document,) = documents(ROOT / "k8s/overlays/keda/autoscaler.yaml")
    (container,) = document["spec"]["template"]["spec"]["containers"]
    program = Path(sys.executable).parent / "foveate"
    result = subprocess.run(
        [program, *container["args"], "--once"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert result.returncode == 1, "there is no such Prometheus here"
    assert "did not answer" in " ".join(result.stderr.split())


def test_grafana_has_a_dashboard_and_a_prometheus_that_exist() -> None:
    (sources,) = documents(ROOT / "monitoring/grafana/provisioning/datasources.yml")
    services = next(documents(ROOT / "docker-compose.yml"))["services"]
    (source,) = sources["datasources"]
    assert source["url"].removeprefix("http://").split(":")[0] in services
    (dashboards,) = documents(ROOT / "monitoring/grafana/provisioning/dashboards.yml")
    (provider,) = dashboards["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert any(target.startswith(provider["options"]["path"]) for target in mounted)
    dashboard = json.loads((ROOT / "monitoring/grafana/foveate.json").read_text())
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "model"}


def test_the_configuration_of_prometheus_in_compose_is_valid(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    (tmp_path / "prometheus.yml").write_text((ROOT / "monitoring/compose.yml").read_text())
    (tmp_path / "rules.yml").write_text((ROOT / "monitoring/rules.yml").read_text())
    result = subprocess.run([program, "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr
