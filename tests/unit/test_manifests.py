"""Dockerfile, Compose and Kubernetes files against their schemas, and against one another."""

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
OTHERS = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1", "kustomize.config.k8s.io/v1beta1", "ray.io/v1")
"""Kinds that are not Kubernetes' own, whose schemas are not at hand."""


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(path.read_text())


def base(kind: str) -> dict[str, Any]:
    found = [one for path in sorted(ROOT.glob("k8s/base/*.yaml")) for one in documents(path)]
    (one,) = (document for document in found if document["kind"] == kind)
    return one


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", YAML, ids=name)
def test_yaml_is_tidy(path: Path) -> None:
    config = YamlLintConfig("{extends: relaxed, rules: {line-length: {max: 120}}}")
    assert not list(linter.run(path.read_text(), config))


@pytest.mark.parametrize("path", sorted(ROOT.glob("k8s/**/*.yaml")), ids=name)
def test_kubernetes_resources_fit_their_schemas(path: Path) -> None:
    for document in documents(path):
        if document["apiVersion"] not in OTHERS:
            kubernetes_validate.validate(document, "1.30", strict=True)


def test_compose_fits_its_schema_and_mounts_what_there_is() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    found = subprocess.run([*command, "docker-compose.yml"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    services = next(documents(ROOT / "docker-compose.yml"))["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            assert (ROOT / volume.partition(":")[0]).is_file(), volume
        settings = {key for key in service.get("environment", {}) if key.startswith("FOVEATE_")}
        assert settings <= {f"FOVEATE_{field.upper()}" for field in Settings.model_fields}
        assert set(service.get("depends_on", ())) <= set(services)


def test_the_dockerfile_is_sound() -> None:
    program = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([program, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    text = (ROOT / "Dockerfile").read_text()
    for line in text.splitlines():
        if line.startswith("COPY ") and not line.startswith("COPY --from"):
            assert all((ROOT / part).exists() for part in line.split()[1:-1]), line


@pytest.mark.parametrize("path", OVERLAYS, ids=name)
def test_overlays_stand_on_files_that_there_are_and_patch_what_is_there(path: Path) -> None:
    (found,) = documents(path)
    for resource in found["resources"]:
        target = path.parent / resource
        assert target.is_file() or (target / "kustomization.yaml").is_file(), resource
    for patch in found.get("patches", ()):
        document = base(patch["target"]["kind"])
        assert document["metadata"]["name"] == patch["target"]["name"]
        for step in yaml.safe_load(patch["patch"]):
            *way, last = (part.replace("~1", "/") for part in step["path"].split("/")[1:])
            place: Any = document
            for part in way:
                place = place[int(part) if isinstance(place, list) else part]
            assert (last in place) == (step["op"] == "remove"), step


def test_selectors_probes_and_ports_meet() -> None:
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
    said = {variable["name"]: variable["value"] for variable in container["env"]}
    settings = Settings(**{key.removeprefix("FOVEATE_").lower(): value for key, value in said.items()})
    assert ports["http"] == settings.port
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause + settings.drain_timeout_s < grace
    assert {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")} == {
        "/livez", "/readyz",
    }  # fmt: skip
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp"}  # noqa: S108


def test_what_ray_is_to_serve_fits_its_schema_and_can_be_bound() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")
    from ray.serve.schema import ServeDeploySchema

    from foveate.gateway.cli import serve_ray

    (service,) = documents(ROOT / "k8s/ray/rayservice.yaml")
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
        said = {variable["name"]: variable["value"] for variable in container["env"]}
        assert (
            said.items() >= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}.items()
        )
    pods = [service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]]
    pods += [group["template"] for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
    for number, pod in enumerate(pods):
        as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"} | pod["metadata"]}
        kubernetes_validate.validate(as_pod | {"spec": pod["spec"]}, "1.30", strict=True)
        labels = pod["metadata"]["labels"]
        for file in ("disruption", "network"):
            (other,) = documents(ROOT / f"k8s/ray/{file}.yaml")
            selector = other["spec"].get("selector") or other["spec"]["podSelector"]
            # Which group a pod is of is told by KubeRay.
            assert selector["matchLabels"].items() <= labels.items() | {("ray.io/group", "gateways")}
    gateways = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["rayStartParams"]["resources"]
    assert settings.gateway_resources.keys() <= json.loads(gateways.strip("'")).keys()


def test_a_gateway_for_ray_needs_no_torch() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")
    told = (
        "import sys; sys.modules['torch'] = None; "
        "from foveate.gateway.cli import serve_ray; serve_ray.build({})"
    )
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr


def test_what_keda_asks_for_is_what_the_autoscaler_publishes() -> None:
    (scaled,) = documents(ROOT / "k8s/overlays/keda/scaledobject.yaml")
    assert scaled["spec"]["scaleTargetRef"]["name"] == base("Deployment")["metadata"]["name"]
    (trigger,) = scaled["spec"]["triggers"]
    assert "foveate_autoscaler_desired_replicas" in trigger["metadata"]["query"]
    assert "foveate_full_quality_seconds" in {family.name for family in Metrics().registry.collect()}


def test_the_autoscaler_starts_as_its_manifest_says() -> None:
    (document,) = documents(ROOT / "k8s/overlays/keda/autoscaler.yaml")
    (container,) = document["spec"]["template"]["spec"]["containers"]
    program = Path(sys.executable).parent / "foveate"
    found = subprocess.run(
        [program, *container["args"], "--once"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert found.returncode == 1, "there is no such Prometheus here"
    assert "did not answer" in " ".join(found.stderr.split())


def test_grafana_finds_its_dashboard_and_its_prometheus() -> None:
    (sources,) = documents(ROOT / "monitoring/grafana/provisioning/datasources.yml")
    services = next(documents(ROOT / "docker-compose.yml"))["services"]
    (source,) = sources["datasources"]
    assert source["url"].removeprefix("http://").split(":")[0] in services
    (boards,) = documents(ROOT / "monitoring/grafana/provisioning/dashboards.yml")
    (provider,) = boards["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert any(target.startswith(provider["options"]["path"]) for target in mounted)
    board = json.loads((ROOT / "monitoring/grafana/foveate.json").read_text())
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "model"}


def test_prometheus_in_compose_is_configured_as_it_reads_it(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    (tmp_path / "prometheus.yml").write_text((ROOT / "monitoring/compose.yml").read_text())
    (tmp_path / "rules.yml").write_text((ROOT / "monitoring/rules.yml").read_text())
    found = subprocess.run([program, "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True)
    assert found.returncode == 0, found.stdout + found.stderr
