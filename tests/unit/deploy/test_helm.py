"""The Helm chart: what it renders is valid by schema, and every name in it leads somewhere."""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from fastapi.routing import APIRoute
from kubernetes_validate import utils as schemas

from api.batches.file_formats import MAX_BYTES
from api.compat.jobs import WAIT_SECONDS
from api.core.health import router as health
from api.core.health import unlisted_router as unlisted
from deploy.docker.secrets import NAMES
from deploy.local.postgres_server import INITDB_OPTIONS
from shared.core.settings import Settings
from tests.processes import PROJECT
from tests.unit.deploy.chart import CHART, PREFIX, VALUES, Document, helm, rendered
from tests.unit.deploy.compose_file import load_compose
from tests.unit.deploy.dockerfiles import DEPLOY, command_of
from tests.unit.deploy.keda import SCALED_OBJECT

VERSION = "1.34"
PROBES = ("startup", "liveness", "readiness")
WORKLOADS = ("Deployment", "StatefulSet", "Job", "CronJob")
EACH = pytest.mark.parametrize("name", VALUES)


@EACH
def test_helm_finds_nothing(name: str) -> None:
    files = (f"--values={CHART / file}" for file in VALUES[name])
    linted = helm("lint", "--strict", "--quiet", str(CHART), *files)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("settings.DARKROOM_REDIS_URL=redis://x", "DARKROOM_REDIS_URL"),
        ("settings.DARKROOM_METRICS_PORT=1", "DARKROOM_METRICS_PORT"),
        ("api.replicas=3", "replicas"),
        ("backup.every=P1D", "every"),
        ("generateWorker.gpus=2", "gpus"),
        ("generateWorker.autoscaling.enabled=true", "autoscaling needs the names of the models"),
    ],
)
def test_wrong_values_are_refused(wrong: str, said: str) -> None:
    done = helm("template", str(CHART), f"--set={wrong}")
    assert done.returncode != 0
    assert said in done.stderr


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_the_packaged_chart_is_the_same(tmp_path: Path) -> None:
    """In the folder some files are links that lead out of it."""
    packed = helm("package", str(CHART), f"--destination={tmp_path}")
    assert packed.returncode == 0, packed.stderr
    [archive] = tmp_path.iterdir()
    more = (f"--values={CHART / 'values-minimal.yaml'}", "--set=monitoring.dashboards=true")
    done = helm("template", "studio", str(archive), "--namespace=images", *more)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    assert documents == rendered("minimal", more[-1])


@pytest.mark.long
@EACH
def test_every_manifest_is_valid(name: str) -> None:
    """The validators raise."""
    for document in rendered(name, "--set=ingress.enabled=true"):
        if document["kind"] == "ScaledObject":
            jsonschema.validate(document, SCALED_OBJECT)
        elif not document["apiVersion"].startswith("monitoring.coreos.com/"):
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
    [scaled] = [each for each in rendered("gpu") if each["kind"] == "ScaledObject"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**scaled, "spec": {**scaled["spec"], "minReplicas": 1}}, SCALED_OBJECT)


@EACH
def test_every_setting_exists(name: str) -> None:
    known = {f"DARKROOM_{field.upper()}" for field in (*Settings.model_fields, "secrets_dir")}
    settings = _one(name, "ConfigMap", "settings")["data"]
    assert set(settings) <= known
    for workload in _workloads(name):
        if workload["metadata"]["name"] == f"{PREFIX}playground":
            continue
        for container in _containers(workload):
            named = {entry["name"] for entry in container.get("env", [])}
            assert {entry for entry in named if entry.startswith("DARKROOM_")} <= known


def test_settings_are_what_the_values_file_says(tmp_path: Path) -> None:
    """YAML's numbers are floats to Helm."""
    given = {
        "DARKROOM_MAX_BODY_BYTES": 16777216,
        "DARKROOM_MAX_QUEUED_COST": 10**13,
        "DARKROOM_GPU_SECONDS_PER_MEGAPIXEL_STEP": 0.25,
        "DARKROOM_TRACING": True,
        "DARKROOM_LEASE": "PT1M",
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"settings": given}), "utf-8")
    documents = rendered("default", f"--values={file}")
    settings = _find(documents, "ConfigMap", "settings")["data"]
    migrate, bootstrap = _containers(_find(documents, "Job", "prepare-1"))
    for variables in (settings, _environment(migrate), _environment(bootstrap)):
        said = {name: variables[name] for name in given}
        assert said == {name: str(value).replace("True", "true") for name, value in given.items()}


@EACH
def test_every_configuration_and_secret_exists(name: str) -> None:
    maps = {each["metadata"]["name"]: set(each["data"]) for each in _kind(name, "ConfigMap")}
    values = (CHART / "values.yaml").read_text("utf-8")
    keys = set(NAMES) if name == "minimal" else set(re.findall(r"#   (darkroom_\w+)", values))
    claims = {each["metadata"]["name"] for each in _kind(name, "PersistentVolumeClaim")}
    for workload in _workloads(name):
        for volume in _pod(workload)["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            if "secret" in volume:
                assert volume["secret"]["secretName"] == "darkroom-secrets"
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
            for probe in PROBES:
                described = container.get(f"{probe}Probe", {})
                check = described.get("httpGet") or described.get("tcpSocket")
                assert check is None or check["port"] in ports


@EACH
def test_ports_are_those_that_the_images_listen_on(name: str) -> None:
    settings = _one(name, "ConfigMap", "settings")["data"]
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


def test_the_playground_has_no_rights_of_its_own() -> None:
    """Its users bring keys, and images come from the API."""
    documents = rendered("default", "--set=serviceAccountAnnotations.role=s3")
    annotated = {
        e["metadata"]["name"].removeprefix(PREFIX): e["metadata"].get("annotations")
        for e in documents
        if e["kind"] == "ServiceAccount"
    }
    assert annotated.pop("playground") is None
    assert len(annotated) == 3
    assert all(annotations == {"role": "s3"} for annotations in annotated.values())
    [container] = _containers(_find(documents, "Deployment", "playground"))
    assert set(_environment(container)) == {"DARKROOM_URL"}


@EACH
def test_every_selector_finds_pods(name: str) -> None:
    pods = [_template(workload) for workload in _workloads(name)]
    for service in _kind(name, "Service"):
        [pod] = [pod for pod in pods if _matches(service["spec"]["selector"], pod)]
        ports = {port["name"] for each in pod["spec"]["containers"] for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for budget in _kind(name, "PodDisruptionBudget"):
        assert any(_matches(budget["spec"]["selector"]["matchLabels"], pod) for pod in pods)
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for policy in _kind(name, "NetworkPolicy"):
        chosen = [pod for pod in pods if _chooses(policy["spec"]["podSelector"], pod)]
        assert chosen, policy["metadata"]["name"]
    for scaler in (*_kind(name, "HorizontalPodAutoscaler"), *_kind(name, "ScaledObject")):
        target = scaler["spec"]["scaleTargetRef"]
        deployment = _one(name, target["kind"], target["name"].removeprefix(PREFIX))
        assert "replicas" not in deployment["spec"], "two would count the replicas"


@EACH
def test_pods_keep_the_restricted_standard(name: str) -> None:
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
        grace = _environment(container).get("DARKROOM_SHUTDOWN_GRACE")
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


@EACH
def test_tokens_of_clouds_have_room_beside_the_secrets(name: str) -> None:
    """They are mounted into /var/run/secrets, which is /run/secrets in images."""
    folder = _one(name, "ConfigMap", "settings")["data"]["DARKROOM_SECRETS_DIR"]
    for workload in _workloads(name):
        for container in _containers(workload) if workload["kind"] != "StatefulSet" else ():
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert not [path for path in mounts.values() if path.startswith(("/run", "/var/run"))]
            assert mounts.get("secrets", folder) == folder
            files = [each for each in container.get("command", []) if "=/" in each]
            assert all(f"={folder}/" in file for file in files)


def test_a_pooler_is_for_the_api_alone() -> None:
    api = {"settings": {"DARKROOM_DATABASE_POOLER": True}, "databaseUrlKey": "pooler_url"}
    documents = rendered("backup", f"--set-json=api={json.dumps(api)}")
    others = [("Deployment", "cpu-worker"), ("Deployment", "generate-worker")]
    others += [("Job", "prepare-1"), ("CronJob", "backup")]
    for kind, name in (("Deployment", "api"), *others):
        pod = _pod(_find(documents, kind, name))
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        keys = {item["path"]: item["key"] for item in volumes["secrets"]["secret"]["items"]}
        pooler = _environment(pod["containers"][0]).get("DARKROOM_DATABASE_POOLER")
        given = (pooler, keys["darkroom_database_url"])
        own = ("true", "pooler_url") if name == "api" else (None, "darkroom_database_url")
        assert given == own, name


def test_each_reaches_its_databases_port_and_no_other() -> None:
    """A pooler has its own, which is the API's alone."""
    ranges = [{"cidr": "10.1.0.0/16", "ports": [25060, 6379]}]
    data = f"--set-json=networkPolicies.data={json.dumps(ranges)}"
    direct, pooled = {25060, 6379}, {25060, 6379, 7432}
    for more, wanted in (
        ((), direct),
        (("--set=api.databaseUrlKey=pooler_url,api.poolerPort=7432",), pooled),
    ):
        documents = rendered("backup", data, *more)
        for document in documents:
            if document["kind"] == "NetworkPolicy":
                schemas.validate(document, VERSION, strict=True)
        reached = {
            workload["metadata"]["name"].removeprefix(PREFIX): _ports(documents, workload)
            for workload in documents
            if workload["kind"] in WORKLOADS
        }
        assert reached.pop("api") == wanted
        assert reached.pop("playground") == set()
        assert set(reached) == {"backup", "cpu-worker", "generate-worker", "prepare-1"}
        assert all(ports == direct for ports in reached.values())


def test_s3_by_a_role_needs_no_keys() -> None:
    for document in rendered("default", "--set=s3Keys=false"):
        assert "darkroom_s3_" not in str(document)


def test_files_variables_a_token_and_a_signer_reach_every_pod_that_reads_settings() -> None:
    more: dict[str, list[Any]] = {
        "extraSecretKeys": ["darkroom_provenance_signer_token"],
        "extraVolumes": [{"name": "files", "secret": {"secretName": "own"}}],
        "extraVolumeMounts": [{"name": "files", "mountPath": "/files", "readOnly": True}],
        "extraEnv": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}],
        "networkPolicies.extraEgress": [{"to": [{"podSelector": {}}], "ports": [{"port": 8080}]}],
    }
    arguments = [f"--set-json={name}={json.dumps(value)}" for name, value in more.items()]
    documents = rendered("backup", *arguments)
    for document in documents:
        if document["kind"] != "PrometheusRule":
            schemas.validate(document, VERSION, strict=True)
    pods = [
        _template(document)
        for document in documents
        if document["kind"] in WORKLOADS and "playground" not in document["metadata"]["name"]
    ]
    assert len(pods) == 5
    [policy] = [e for e in documents if e["metadata"]["name"] == f"{PREFIX}data"]
    assert policy["spec"]["egress"][-1] == more["networkPolicies.extraEgress"][0]
    for pod in pods:
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        keys = {item["key"] for item in volumes["secrets"]["secret"]["items"]}
        assert "darkroom_provenance_signer_token" in keys
        assert volumes["files"] == more["extraVolumes"][0]
        assert _chooses(policy["spec"]["podSelector"], pod)
        for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
            assert more["extraVolumeMounts"][0] in container["volumeMounts"]
            assert more["extraEnv"][0] in container["env"]


@pytest.mark.parametrize(
    "field", [f for f, each in Settings.model_fields.items() if "SecretStr" in str(each.annotation)]
)
def test_no_secret_goes_into_the_config_map(field: str) -> None:
    done = helm("template", str(CHART), f"--set=settings.DARKROOM_{field.upper()}=x")
    assert done.returncode != 0
    assert f"DARKROOM_{field.upper()}" in done.stderr


def test_spot_machines_give_less_time() -> None:
    pod = _pod(_one("gpu-spot", "Deployment", "generate-worker"))
    assert pod["terminationGracePeriodSeconds"] <= 30
    assert len(pod["tolerations"]) == 4
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


@EACH
def test_nobody_reaches_the_metadata_address(name: str) -> None:
    denied = _one(name, "NetworkPolicy", "deny-all")["spec"]
    assert set(denied) == {"podSelector", "policyTypes"}
    assert denied["policyTypes"] == ["Ingress", "Egress"]
    for workload in _workloads(name):
        assert _chooses(denied["podSelector"], _template(workload))
    for policy in _kind(name, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            assert rule.get("to"), f"{policy['metadata']['name']} lets everything out"
            for peer in rule["to"]:
                block = peer.get("ipBlock", {})
                if block.get("cidr") == "0.0.0.0/0":
                    assert {"169.254.0.0/16", "10.0.0.0/8"} <= set(block["except"])


def test_names_may_be_resolved_elsewhere() -> None:
    ports = [{"protocol": "UDP", "port": 53}]
    dns = [{"to": [{"ipBlock": {"cidr": "169.254.20.10/32"}}], "ports": ports}]
    documents = rendered("default", f"--set-json=networkPolicies.dns={json.dumps(dns)}")
    policy = _find(documents, "NetworkPolicy", "dns")
    schemas.validate(policy, VERSION, strict=True)
    assert policy["spec"]["egress"] == dns


@EACH
def test_a_rollout_waits_until_a_worker_takes_work(name: str) -> None:
    for worker in ("cpu-worker", "generate-worker"):
        [container] = _pod(_one(name, "Deployment", worker))["containers"]
        probed = {probe: container[f"{probe}Probe"] for probe in PROBES}
        paths = {probe: described["httpGet"]["path"] for probe, described in probed.items()}
        assert paths == {"startup": "/startupz", "liveness": "/healthz", "readiness": "/readyz"}
        spread = _pod(_one(name, "Deployment", worker))["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in spread] == ["kubernetes.io/hostname"]


def test_a_large_model_is_given_time_to_start() -> None:
    documents = rendered("default", "--set=generateWorkers.large.startupSeconds=3605")
    deployment = _find(documents, "Deployment", "large")
    [container] = _containers(deployment)
    probe = container["startupProbe"]
    given = probe["periodSeconds"] * probe["failureThreshold"]
    assert 3605 <= given < deployment["spec"]["progressDeadlineSeconds"]


def test_the_ingress_lets_through_what_the_api_takes() -> None:
    documents = rendered("default", "--set=ingress.enabled=true")
    [ingress] = [document for document in documents if document["kind"] == "Ingress"]
    nginx = "nginx.ingress.kubernetes.io/proxy-"
    limits = {k.removeprefix(nginx): v for k, v in ingress["metadata"]["annotations"].items()}
    fields = [Settings.model_fields[f"max_{each}_bytes"] for each in ("body", "upload")]
    largest = max(MAX_BYTES, *(field.default for field in fields))
    assert int(limits["body-size"].removesuffix("m")) * 2**20 > largest
    assert int(limits["read-timeout"]) > WAIT_SECONDS
    assert limits["buffering"] == "off"


def test_the_api_has_traffic_while_postgres_answers() -> None:
    [container] = _containers(_one("default", "Deployment", "api"))
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in PROBES}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz/database"}
    routes = [each for each in (*health.routes, *unlisted.routes) if isinstance(each, APIRoute)]
    assert set(paths.values()) <= {route.path for route in routes}


def test_the_servers_for_a_try_make_postgres_as_the_local_stack_does() -> None:
    [postgres] = [e for e in _kind("minimal", "StatefulSet") if e["metadata"]["name"] == "postgres"]
    [container] = _pod(postgres)["containers"]
    assert tuple(_environment(container)["POSTGRES_INITDB_ARGS"].split()) == INITDB_OPTIONS


@pytest.mark.parametrize(("jobs", "most"), [(1, 1), (3, 3), (40, 16)])
@pytest.mark.parametrize("cold", [60, 120, 180, 300, 900])
def test_waiting_jobs_start_no_more_workers_than_they_can_use(
    jobs: int, most: int, cold: int
) -> None:
    """The autoscaler's formula, look by look, while the first model is loaded."""
    spec = _kind("gpu", "ScaledObject")[0]["spec"]
    [policy] = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"]["policies"]
    assert policy["type"] == "Pods"
    pods = [0.0]  # when each was started; KEDA starts the first
    for now in range(0, cold, spec["pollingInterval"]):
        measured = (jobs, min(now / 30, jobs))  # what the two queries ask for
        wanted = 1
        for trigger, value in zip(spec["triggers"], measured, strict=True):
            share = value / float(trigger["metadata"]["threshold"])
            ready = sum(now - begun > 10 for begun in pods)
            factor = ready if trigger["metricType"] == "Value" else 1
            wanted = max(wanted, ceil(factor * share))
        room = policy["value"] - sum(now - begun < policy["periodSeconds"] for begun in pods[1:])
        missing = min(wanted, spec["maxReplicaCount"]) - len(pods)
        pods += [float(now)] * max(0, min(missing, room))
    assert len(pods) <= most


def test_a_busy_fleet_outlives_prometheus() -> None:
    [scaled] = _kind("gpu", "ScaledObject")
    assert scaled["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    # A fallback needs it.
    assert {trigger["metricType"] for trigger in scaled["spec"]["triggers"]} == {"AverageValue"}


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
        assert set(re.findall(r'model=~"([^"]+)"', query)) <= models
    assert scaled["spec"]["minReplicaCount"] == 0


def test_the_servers_for_a_try_run_the_scripts_of_compose() -> None:
    scripts = _one("minimal", "ConfigMap", "server-scripts")["data"]
    assert set(scripts) == {"10-darkroom.sh", "prepare.sql", "redis.sh"}
    for name, text in scripts.items():
        folder = DEPLOY / "docker"
        path = folder / name if (folder / name).exists() else folder / "postgres" / name
        assert text.rstrip() == path.read_text("utf-8").rstrip(), name


def test_an_upgrade_migrates_before_its_pods_start() -> None:
    [installed] = _kind("default", "Job")
    assert "helm.sh/hook" not in installed["metadata"]["annotations"]
    [hook] = [e for e in rendered("default", "--is-upgrade") if e["kind"] == "Job"]
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    [migrate] = hook["spec"]["template"]["spec"]["initContainers"]
    assert migrate["command"] == ["darkroom-server", "migrate"]


def test_backups_are_those_of_compose_and_outlive_the_chart() -> None:
    assert not _kind("default", "CronJob")
    compose = load_compose()["services"]["backup"]
    cron_job = _one("backup", "CronJob", "backup")
    assert cron_job["spec"]["concurrencyPolicy"] == "Forbid"
    [container] = _containers(cron_job)
    *command, repeats = compose["command"]
    assert container["args"] == command
    assert repeats == "--every=P1D", "the other's schedule"
    named = container["image"].rpartition("/")[2].partition(":")[0]
    assert named == compose["image"].partition(":")[0]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["backups"] == command[-1]
    claim = _one("backup", "PersistentVolumeClaim", "backup")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_backups_can_go_into_a_volume_of_ones_own() -> None:
    documents = rendered("backup", "--set=backup.volume.claim=own")
    assert not [each for each in documents if each["kind"] == "PersistentVolumeClaim"]
    for kind, name in (("CronJob", "backup"), ("Job", "prepare-1")):
        volumes = {
            volume["name"]: volume for volume in _pod(_find(documents, kind, name))["volumes"]
        }
        assert volumes["backups"]["persistentVolumeClaim"] == {"claimName": "own"}


def test_an_installation_begins_with_a_backup_and_an_upgrade_does_not() -> None:
    """A restore needs an empty database; later there is none."""
    prepare = _one("backup", "Job", "prepare-1")
    restore, migrate = prepare["spec"]["template"]["spec"]["initContainers"]
    assert restore["command"] == ["darkroom-server", "backup", "restore", "/backups"]
    assert "/darkroom-backup:" in restore["image"]
    assert migrate["command"] == ["darkroom-server", "migrate"]
    assert "activeDeadlineSeconds" not in prepare["spec"], "it may take hours"
    for documents in (rendered("backup", "--is-upgrade"), rendered("default")):
        [job] = [each for each in documents if each["kind"] == "Job"]
        assert [each["name"] for each in _pod(job)["initContainers"]] == ["migrate"]
        assert "backups" not in str(_pod(job)["volumes"])


def test_prometheus_scrapes_every_process_and_has_every_alert() -> None:
    [monitor] = _kind("gpu", "PodMonitor")
    named = {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]}
    for each in ("api", "cpu-worker", "generate-worker"):
        pod = _one("gpu", "Deployment", each)["spec"]["template"]
        assert _chooses(monitor["spec"]["selector"], pod)
        [container] = pod["spec"]["containers"]
        assert {port["name"] for port in container["ports"]} & named
    [rule] = _kind("gpu", "PrometheusRule")
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text("utf-8"))
    assert rule["spec"] == alerts


@pytest.mark.parametrize("groups", ["", "--set=generateWorkers.large.models={sdxl}"])
@EACH
def test_nothing_is_there_twice(name: str, groups: str) -> None:
    """Helm would install none of it."""
    documents = rendered(name, "--set=ingress.enabled=true", *groups.split())
    names = Counter((each["kind"], each["metadata"]["name"]) for each in documents)
    assert not [each for each, count in names.items() if count > 1]


def test_groups_of_workers_serve_models_of_their_own() -> None:
    groups = "generateWorkers.large.models={sdxl,flux},generateWorkers.generate-worker.replicas=2"
    documents = rendered("gpu", f"--set={groups}")
    deployments = {
        e["metadata"]["name"].removeprefix(PREFIX): e
        for e in documents
        if e["kind"] == "Deployment"
    }
    [container] = _pod(deployments["large"])["containers"]
    assert container["args"] == ["generate", "--model=sdxl", "--model=flux"]
    [scaled] = [
        e["spec"]
        for e in documents
        if e["kind"] == "ScaledObject" and e["metadata"]["name"].endswith("large")
    ]
    assert all('model=~"sdxl|flux"' in each["metadata"]["query"] for each in scaled["triggers"])


def test_the_first_group_of_workers_can_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("generateWorkers: {generate-worker: null, large: {models: [sdxl]}}", "utf-8")
    names = {e["metadata"]["name"] for e in rendered("default", f"--values={file}")}
    assert f"{PREFIX}large" in names
    assert not [name for name in names if name.endswith("generate-worker")]


def _models(name: str) -> list[Document]:
    text = _one(name, "ConfigMap", "models")["data"]["models.toml"]
    return list(tomllib.loads(text)["model"])


def _kind(name: str, kind: str) -> list[Document]:
    return [document for document in rendered(name) if document["kind"] == kind]


def _one(name: str, kind: str, called: str) -> Document:
    return _find(rendered(name), kind, called)


def _find(documents: list[Document], kind: str, called: str) -> Document:
    named = (kind, PREFIX + called)
    [document] = [e for e in documents if (e["kind"], e["metadata"]["name"]) == named]
    return document


def _workloads(name: str) -> Iterator[Document]:
    return (document for kind in WORKLOADS for document in _kind(name, kind))


def _template(workload: Document) -> Document:
    spec = workload["spec"]
    return dict(spec.get("jobTemplate", {}).get("spec", spec)["template"])


def _pod(workload: Document) -> Document:
    return dict(_template(workload)["spec"])


def _containers(workload: Document) -> list[Document]:
    pod = _pod(workload)
    return [*pod.get("initContainers", []), *pod["containers"]]


def _environment(container: Document) -> dict[str, str]:
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def _ports(documents: list[Document], workload: Document) -> set[int]:
    """Those that a workload reaches in the ranges of the databases."""
    return {
        port["port"]
        for policy in documents
        if policy["kind"] == "NetworkPolicy"
        and _chooses(policy["spec"]["podSelector"], _template(workload))
        for rule in policy["spec"].get("egress", ())
        if any(peer.get("ipBlock", {}).get("cidr") == "10.1.0.0/16" for peer in rule["to"])
        for port in rule["ports"]
    }


def _matches(labels: dict[str, str], pod: Document) -> bool:
    return labels.items() <= pod["metadata"]["labels"].items()


def _chooses(selector: dict[str, Any], pod: Document) -> bool:
    labels = pod["metadata"]["labels"]
    return _matches(selector.get("matchLabels", {}), pod) and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )
