"""deploy/compose.yaml: valid, complete, and as locked down as it says."""

import re
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from deploy.docker.secrets import NAMES, make_secrets
from deploy.local.postgres_server import INITDB_OPTIONS
from shared.core.keys import parse_key
from shared.core.settings import Settings
from tests.processes import PROJECT
from tests.unit.deploy.compose_file import load_compose, secrets_of

DEPLOY = PROJECT / "deploy"
DOCUMENT = load_compose()
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
WORKERS = ("cpu-worker", "generate-worker", "generate-worker-cpu")
OURS = ("migrate", "bootstrap", "backup", "restore", "api", *WORKERS)


def test_it_follows_the_compose_specification() -> None:
    known = re.sub(r"on-failure:\d+", "on-failure", yaml.safe_dump(DOCUMENT))  # not yet to it
    parsed = compose_spec.PyCompose.from_yaml(known)
    parsed.validate()
    parsed.to_spec()
    assert set(parsed.service_names()) == set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service.get("user") not in ("root", "0", 0)


@pytest.mark.parametrize("name", SERVICES)
def test_every_mount_exists_and_is_read_only(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source, _target, *mode = mount.split(":")
        if source.startswith("."):
            assert mode == ["ro"], mount
            assert (DEPLOY / source).exists(), mount
        else:
            assert source in DOCUMENT["volumes"], mount


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_exists_and_can_become_so(name: str) -> None:
    waits = SERVICES[name].get("depends_on", {})
    if isinstance(waits, list):
        waits = {other: {"condition": "service_started"} for other in waits}
    for other, wait in waits.items():
        if wait["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"], f"{other} is never healthy"
        if wait["condition"] == "service_completed_successfully":
            # Without a number, a mistake in a setting is tried for ever.
            assert re.fullmatch(r"on-failure:\d+", SERVICES[other]["restart"]), other


def test_a_restore_finds_an_empty_database() -> None:
    """`run` starts what a service waits for, and what that waits for."""
    started, found = {"restore"}, {"restore"}
    while found:
        found = {each for name in found for each in SERVICES[name].get("depends_on", {})} - started
        started |= found
    assert started == {"restore", "postgres", "s3"}
    command = "docker compose -f deploy/compose.yaml run --rm restore"
    assert f"`{command}`" in (PROJECT / "docs" / "deploy.md").read_text("utf-8")
    assert SERVICES["restore"]["command"] == ["restore", "/backups"]
    assert SERVICES["restore"]["restart"] == "no"
    saving = SERVICES["backup"]["volumes"]
    assert "backups:/backups" in saving
    assert SERVICES["restore"]["volumes"] == saving


def test_every_image_says_its_version() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']}"


def test_images_of_others_can_come_from_elsewhere() -> None:
    """By digest, or from a registry of one's own."""
    names = {
        f"{name}_IMAGE": f"own/{name}" for name in ("POSTGRES", "REDIS", "PROMETHEUS", "GRAFANA")
    }
    images = {service["image"] for service in load_compose(names)["services"].values()}
    assert {image for image in images if not image.startswith("darkroom-")} == set(names.values())


def test_every_setting_that_is_set_exists() -> None:
    known = {f"DARKROOM_{name.upper()}" for name in Settings.model_fields}
    for name in OURS:
        assert set(SERVICES[name]["environment"]) <= known | {"TMPDIR"}
    file_names = {name.lower() for name in known}
    for name in OURS:
        secrets = set(secrets_of(SERVICES[name]))
        assert {secret for secret in secrets if secret != "darkroom_api_key"} <= file_names


@pytest.mark.parametrize("name", OURS)
def test_every_setting_can_be_set(name: str) -> None:
    """What Compose does not pass is ignored without a word, even if it is a filter."""
    given = {f"DARKROOM_{field.upper()}": "own" for field in Settings.model_fields}
    environment = load_compose(given)["services"][name]["environment"]
    passed = {setting for setting, value in environment.items() if value == "own"}
    secrets = {secret.upper() for secret in secrets_of(SERVICES[name])}
    own = {f"DARKROOM_{each}" for each in ("WORKER_NAME", "SHUTDOWN_GRACE", "DATABASE_POOLER")}
    named = {setting for setting in environment if setting.startswith("DARKROOM_")}
    assert named <= set(given), "a setting that there is not"
    assert passed | secrets | set(SERVICES[name]["environment"]) | own >= set(given)
    assert not passed & secrets
    assert "DARKROOM_FILTERS" not in SERVICES[name]["environment"]


@pytest.mark.parametrize("name", OURS)
def test_files_that_settings_name_are_there(name: str) -> None:
    """Wherever settings are read, they are checked."""
    assert "./files:/files:ro" in SERVICES[name]["volumes"]
    assert "deploy/files" in (PROJECT / ".dockerignore").read_text("utf-8").splitlines()


def test_settings_are_read_from_the_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"DARKROOM_{name.upper()}", raising=False)
    make_secrets(tmp_path)
    settings = Settings(_secrets_dir=tmp_path)
    assert settings.environment == "production"
    assert "@postgres:5432/darkroom" in settings.database_url.get_secret_value()
    assert settings.s3_access_key == (tmp_path / "darkroom_s3_access_key").read_text().strip()


def test_no_secret_has_a_default() -> None:
    assert set(DOCUMENT["secrets"]) == {*NAMES, "api_database_url"}
    for name, secret in DOCUMENT["secrets"].items():
        file = name.replace("api_database_url", "darkroom_database_url")
        assert secret == {"file": f"./secrets/{file}"}
    used = {secret for service in SERVICES.values() for secret in secrets_of(service)}
    assert used == set(NAMES)


def test_secrets_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert set(make_secrets(folder)) == set(NAMES)
    assert folder.stat().st_mode & 0o077 == 0
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert parse_key(before["darkroom_api_key"].strip()) is not None
    (folder / "grafana_password").unlink()
    assert make_secrets(folder) == ["grafana_password"]
    after = {path.name: path.read_text() for path in folder.iterdir()}
    assert {name for name in NAMES if before[name] != after[name]} == {"grafana_password"}


def test_published_ports_stay_on_this_machine_unless_asked() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
    assert DOCUMENT["networks"]["data"]["internal"] is True
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["data"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_given_time_to_hand_back(name: str) -> None:
    given = SERVICES[name]["stop_grace_period"]
    grace = SERVICES[name]["environment"].get("DARKROOM_SHUTDOWN_GRACE")
    settings = Settings.model_validate(
        {
            "environment": "local",
            "database_url": "postgresql://x/x",
            "redis_url": "redis://x",
            **({"shutdown_grace": grace} if grace else {}),
        }
    )
    assert float(given.removesuffix("s")) >= settings.shutdown_grace.total_seconds() + 10


def test_postgres_is_made_as_the_local_stack_makes_it() -> None:
    """Its builtin locale refuses to start with another encoding than UTF8."""
    assert tuple(SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split()) == (
        INITDB_OPTIONS
    )


@pytest.mark.parametrize("name", SERVICES)
def test_no_tmpfs_names_an_owner(name: str) -> None:
    """Podman 4.3 refuses `uid=`."""
    assert "uid=" not in str(SERVICES[name].get("tmpfs"))


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_healthy_when_it_takes_work(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][-1].endswith("/readyz")


def test_redis_forgets_nothing_on_its_own() -> None:
    script = (DEPLOY / "docker" / "redis.sh").read_text("utf-8")
    for line in ("maxmemory-policy noeviction", "appendonly yes", "requirepass $(cat "):
        assert line in script


def test_a_store_of_ones_own_is_reached_by_all_that_use_it() -> None:
    endpoint = "https://s3.example"
    services = load_compose({"DARKROOM_S3_ENDPOINT": endpoint})["services"]
    for name in OURS:
        assert services[name]["environment"]["DARKROOM_S3_ENDPOINT"] == endpoint
        if name != "migrate":  # which needs Postgres alone
            assert "edge" in services[name]["networks"], name
    assert SERVICES["api"]["environment"]["DARKROOM_S3_ENDPOINT"] == "http://s3:9000"


def test_a_pooler_is_for_the_api_alone() -> None:
    """Workers refuse to start with one."""
    given = {
        "DARKROOM_DATABASE_POOLER": "true",
        "DARKROOM_API_DATABASE_URL_FILE": "./secrets/pooler_url",
    }
    document = load_compose(given)
    for name in OURS:
        service = document["services"][name]
        secret = secrets_of(service)["darkroom_database_url"]
        pooled = document["secrets"][secret]["file"] == "./secrets/pooler_url"
        assert pooled is (name == "api"), name
        assert ("DARKROOM_DATABASE_POOLER" in service["environment"]) is (name == "api"), name


@pytest.mark.parametrize("name", OURS)
def test_variables_of_other_programs_come_from_a_file(name: str) -> None:
    """OpenTelemetry's, boto3's, Hugging Face's, a proxy's: Compose passes none by itself."""
    assert SERVICES[name]["env_file"] == [{"path": "./extra.env", "required": False}]
    assert "deploy/extra.env" in (PROJECT / "docs" / "deploy.md").read_text("utf-8")
    for ignored in (".gitignore", ".dockerignore"):
        lines = (PROJECT / ignored).read_text("utf-8").splitlines()
        assert {"deploy/.env", "deploy/extra.env"} <= set(lines), "it may hold secrets"


def test_uploaded_loras_fit_where_they_are_put() -> None:
    api = SERVICES["api"]
    assert f"spool:{api['environment']['TMPDIR']}" in api["volumes"], "it would be memory"
    assert "chown 10001:10001 /spool" in (DEPLOY / "Dockerfile.api").read_text("utf-8")
    largest = Settings.model_fields["max_lora_bytes"].default
    for name in ("generate-worker", "generate-worker-cpu"):
        [tmp] = SERVICES[name]["tmpfs"]
        gigabytes = re.search(r"size=(\d+)g", tmp)
        assert gigabytes is not None
        # A worker keeps LoRAs in half of it.
        assert int(gigabytes[1]) * 2**30 >= 2 * largest


def test_a_backup_is_healthy_for_two_of_its_periods() -> None:
    document = load_compose({"DARKROOM_BACKUP_EVERY": "P7D"})["services"]["backup"]
    assert document["command"][-1] == "--every=P7D"
    assert document["healthcheck"]["test"][-1] == "file:///backups/manifest.json?every=P7D"
    # Also the first, which may take long.
    assert document["healthcheck"]["start_period"] == "48h"
    assert "--start-period=48h" in (DEPLOY / "Dockerfile.backup").read_text("utf-8")


def test_prometheus_scrapes_all_and_tells_alertmanagers() -> None:
    """Who they are stands in a file that Prometheus looks for where it is mounted."""
    file = DEPLOY / "docker" / "prometheus.yml"
    configuration = yaml.safe_load(file.read_text("utf-8"))
    scraped = {
        name
        for job in configuration["scrape_configs"]
        for target in job["dns_sd_configs"]
        for name in target["names"]
    }
    assert scraped == {"api", "backup", *WORKERS}
    for name in scraped:
        assert "edge" in SERVICES[name]["networks"], f"Prometheus cannot reach {name}"
    [told] = configuration["alerting"]["alertmanagers"]
    assert told["file_sd_configs"] == [{"files": ["/files/alertmanagers.yaml"]}]
    assert "./files:/files:ro" in SERVICES["prometheus"]["volumes"]
