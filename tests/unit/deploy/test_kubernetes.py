"""The Kubernetes manifests: valid by schema, and every name in them leads somewhere."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_validate import utils as schemas

from deploy.docker.secrets import make_secrets
from shared.core.settings import Settings
from tests.processes import PROJECT
from tests.unit.deploy.dockerfiles import DEPLOY, command_of
from tests.unit.deploy.keda import SCALED_OBJECT
from tests.unit.deploy.kustomize import Document, build

KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = {
    path.parent.name: path.parent for path in KUBERNETES.glob("overlays/*/kustomization.yaml")
}
BUILT = {name: build(folder) for name, folder in OVERLAYS.items()}
VERSION = "1.34"
WORKLOADS = ("Deployment", "StatefulSet", "Job")
EACH = pytest.mark.parametrize("name", BUILT)


def test_there_are_three_overlays() -> None:
    assert set(BUILT) == {"minimal", "gpu", "gpu-spot"}


@EACH
def test_every_manifest_is_valid(name: str) -> None:
    """The validators raise."""
    assert BUILT[name]
    for document in BUILT[name]:
        if document["kind"] == "ScaledObject":
            jsonschema.validate(document, SCALED_OBJECT)
        else:
            schemas.validate(document, VERSION, strict=True)


def test_the_schema_bites() -> None:
    broken = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "x"},
        "spec": {"prots": []},
    }
    with pytest.raises(schemas.ValidationError):
        schemas.validate(broken, VERSION, strict=True)
    [scaled] = [each for each in BUILT["gpu"] if each["kind"] == "ScaledObject"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**scaled, "spec": {**scaled["spec"], "minReplicas": 1}}, SCALED_OBJECT)


@EACH
def test_every_setting_exists(name: str) -> None:
    known = {f"DARKROOM_{field.upper()}" for field in Settings.model_fields}
    settings = _one(name, "ConfigMap", "darkroom-settings")["data"]
    assert set(settings) <= known
    for workload in _workloads(name):
        if workload["metadata"]["name"] == "playground":
            continue
        for container in _containers(workload):
            named = {entry["name"] for entry in container.get("env", [])}
            assert {entry for entry in named if entry.startswith("DARKROOM_")} <= known


@EACH
def test_every_configuration_and_secret_exists(name: str) -> None:
    maps = {each["metadata"]["name"]: set(each["data"]) for each in _kind(name, "ConfigMap")}
    [example] = yaml.safe_load_all((KUBERNETES / "secret.example.yaml").read_text("utf-8"))
    made = [each["stringData"] for each in _kind(name, "Secret")]
    keys = set(made[0]) if made else set(example["stringData"])
    claims = {each["metadata"]["name"] for each in _kind(name, "PersistentVolumeClaim")}
    for workload in _workloads(name):
        for volume in _pod(workload)["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            if "secret" in volume:
                assert volume["secret"]["secretName"] == example["metadata"]["name"]
                assert {item["key"] for item in volume["secret"].get("items", [])} <= keys
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        for container in _containers(workload):
            for source in container.get("envFrom", []):
                assert source["configMapRef"]["name"] in maps
            for entry in container.get("env", []):
                reference = entry.get("valueFrom", {}).get("secretKeyRef")
                assert reference is None or reference["key"] in keys


@EACH
def test_mounts_have_volumes_and_probes_have_ports(name: str) -> None:
    for workload in _workloads(name):
        volumes = {volume["name"] for volume in _pod(workload)["volumes"]}
        claims = workload["spec"].get("volumeClaimTemplates", [])
        volumes |= {claim["metadata"]["name"] for claim in claims}
        for container in _containers(workload):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                described = container.get(probe, {})
                check = described.get("httpGet") or described.get("tcpSocket")
                assert check is None or check["port"] in ports


@EACH
def test_ports_are_those_that_the_images_listen_on(name: str) -> None:
    settings = _one(name, "ConfigMap", "darkroom-settings")["data"]
    assert settings["DARKROOM_METRICS_PORT"] == "9464"
    exposed = {"api": 8000, "playground": 8501, "cpu-worker": 9464, "generate-worker": 9464}
    for workload, port in exposed.items():
        [container] = _containers(_one(name, "Deployment", workload))
        assert container["ports"][0]["containerPort"] == port
        image = container["image"].rpartition("/")[2].partition(":")[0].removeprefix("darkroom-")
        assert f"EXPOSE {port}" in (DEPLOY / f"Dockerfile.{image}").read_text("utf-8")


@EACH
def test_the_playground_knows_a_name_to_be_reached_by(name: str) -> None:
    [container] = _containers(_one(name, "Deployment", "playground"))
    own = command_of(DEPLOY / "Dockerfile.playground")
    *same, host = container["args"]
    assert same == own
    assert re.fullmatch(r"--host=[a-z0-9.-]+", host)


@EACH
def test_every_selector_finds_pods(name: str) -> None:
    pods = [workload["spec"]["template"] for workload in _workloads(name)]
    for service in _kind(name, "Service"):
        [pod] = [pod for pod in pods if _matches(service["spec"]["selector"], pod)]
        ports = {port["name"] for each in pod["spec"]["containers"] for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for budget in _kind(name, "PodDisruptionBudget"):
        assert any(_matches(budget["spec"]["selector"]["matchLabels"], pod) for pod in pods)
    for policy in _kind(name, "NetworkPolicy"):
        chosen = [pod for pod in pods if _chooses(policy["spec"]["podSelector"], pod)]
        assert chosen, policy["metadata"]["name"]
    for scaler in (*_kind(name, "HorizontalPodAutoscaler"), *_kind(name, "ScaledObject")):
        target = scaler["spec"]["scaleTargetRef"]
        deployment = _one(name, target["kind"], target["name"])
        assert "replicas" not in deployment["spec"], "two would count the replicas"


@EACH
def test_pods_keep_the_restricted_standard(name: str) -> None:
    [namespace] = _kind(name, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in _workloads(name):
        pod = _pod(workload)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any("hostPath" in volume for volume in pod["volumes"])
        for container in _containers(workload):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert ":" in container["image"]
            assert not container["image"].endswith("latest")


@EACH
def test_a_worker_is_given_time_to_hand_back(name: str) -> None:
    for worker in ("cpu-worker", "generate-worker"):
        pod = _pod(_one(name, "Deployment", worker))
        [container] = pod["containers"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        grace = env.get("DARKROOM_SHUTDOWN_GRACE")
        settings = Settings.model_validate(
            {
                "environment": "local",
                "database_url": "postgresql://x/x",
                "redis_url": "redis://x",
                **({"shutdown_grace": grace} if grace else {}),
            }
        )
        # 2 s to commit, 4 s to hand back (`worker.process`), and slack.
        assert pod["terminationGracePeriodSeconds"] >= settings.shutdown_grace.total_seconds() + 10


def test_spot_machines_give_less_time() -> None:
    pod = _pod(_one("gpu-spot", "Deployment", "generate-worker"))
    assert pod["terminationGracePeriodSeconds"] <= 30
    assert len(pod["tolerations"]) == 4
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


@EACH
def test_nobody_reaches_the_metadata_address(name: str) -> None:
    denied = _one(name, "NetworkPolicy", "deny-all")["spec"]
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in _kind(name, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            assert rule.get("to"), f"{policy['metadata']['name']} lets everything out"
            for peer in rule["to"]:
                block = peer.get("ipBlock", {})
                if block.get("cidr") == "0.0.0.0/0":
                    assert {"169.254.0.0/16", "10.0.0.0/8"} <= set(block["except"])


def test_the_autoscaler_asks_for_metrics_that_exist() -> None:
    source = (PROJECT / "worker" / "maintenance" / "backlog.py").read_text("utf-8")
    [scaled] = _kind("gpu", "ScaledObject")
    models = {spec["name"] for spec in _models("gpu")}
    for trigger in scaled["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        names = re.findall(r"darkroom_\w+", query)
        assert names
        for metric in names:
            assert f'"{metric}"' in source, metric
        assert set(re.findall(r'model="([^"]+)"', query)) <= models
    assert scaled["spec"]["minReplicaCount"] == 0


def test_the_servers_of_the_small_overlay_run_the_scripts_of_compose() -> None:
    scripts = _one("minimal", "ConfigMap", "server-scripts")["data"]
    for name, text in scripts.items():
        folder = DEPLOY / "docker"
        path = folder / name if (folder / name).exists() else folder / "postgres" / name
        assert text == path.read_text("utf-8"), name


@EACH
def test_kubectl_builds_the_same(name: str, tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on PATH to compare with")
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy)
    make_secrets(copy / "overlays" / "minimal" / "secrets")
    built = subprocess.run(
        [kubectl, "kustomize", copy / "overlays" / name], capture_output=True, text=True, check=True
    ).stdout
    # The hash that a generator puts behind a name, wherever the name stands.
    plain = re.sub(r"\b(darkroom-(?:settings|models|secrets))-[a-z0-9]{10}\b", r"\1", built)
    theirs = {_identity(each): each for each in yaml.safe_load_all(plain)}
    ours = {_identity(each): each for each in BUILT[name]}
    assert set(theirs) == set(ours)
    for identity, document in ours.items():
        if identity[0] != "Secret":  # generated from files that only the copy has
            assert theirs[identity] == document, identity


def _models(name: str) -> list[Document]:
    import tomllib

    text = _one(name, "ConfigMap", "darkroom-models")["data"]["models.toml"]
    return list(tomllib.loads(text)["model"])


def _identity(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def _kind(name: str, kind: str) -> list[Document]:
    return [document for document in BUILT[name] if document["kind"] == kind]


def _one(name: str, kind: str, called: str) -> Document:
    [found] = [each for each in _kind(name, kind) if each["metadata"]["name"] == called]
    return found


def _workloads(name: str) -> Iterator[Document]:
    return (document for kind in WORKLOADS for document in _kind(name, kind))


def _pod(workload: Document) -> Document:
    return dict(workload["spec"]["template"]["spec"])


def _containers(workload: Document) -> list[Document]:
    pod = _pod(workload)
    return [*pod.get("initContainers", []), *pod["containers"]]


def _matches(labels: dict[str, str], pod: Document) -> bool:
    return labels.items() <= pod["metadata"]["labels"].items()


def _chooses(selector: dict[str, Any], pod: Document) -> bool:
    labels = pod["metadata"]["labels"]
    return _matches(selector.get("matchLabels", {}), pod) and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )
