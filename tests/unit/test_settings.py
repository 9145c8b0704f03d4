"""Settings: what is refused outside the local stack, and what is understood."""

import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared.core import settings as module
from shared.core.outbound.addresses import OutboundPolicy
from shared.core.settings import Settings, SettingsError, get_settings
from shared.webhooks.message import webhook_policy

GOOD: dict[str, Any] = {
    "environment": "production",
    "database_url": "postgresql://u:Kf93jd2kQ@db/darkroom",
    "redis_url": "redis://:Kf93jd2kQ@redis:6379/0",
    "s3_access_key": "key",
    "s3_secret_key": "Kf93jd2kQ",
}


def test_the_driver_is_named() -> None:
    url = Settings(**GOOD).database_url.get_secret_value()
    assert url == "postgresql+psycopg://u:Kf93jd2kQ@db/darkroom"


def test_outside_the_local_stack_webhooks_go_to_public_https_or_where_the_operator_says() -> None:
    assert webhook_policy(Settings(**GOOD)) == OutboundPolicy()
    within = ["10.1.0.0/16"]
    wider = Settings(**GOOD, webhook_allow_http=True, webhook_allowed_networks=within)
    networks = tuple(map(ip_network, within))
    assert webhook_policy(wider) == OutboundPolicy(allow_http=True, allowed_networks=networks)


def test_links_have_one_slash() -> None:
    assert Settings(**GOOD, public_url="https://api.example/").public_url == "https://api.example"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("database_url", "postgresql://u:postgres@db/darkroom"),
        ("database_url", "postgresql://u:@db/darkroom"),
        ("database_url", "mysql://u:Kf93jd2kQ@db/darkroom"),
        ("redis_url", "redis://:changeme@redis:6379/0"),
        ("redis_url", "redis://redis:6379/0"),
        ("redis_url", "redis://user@redis:6379/0"),
        ("s3_secret_key", "minioadmin"),
        ("s3_secret_key", ""),
        ("s3_access_key", ""),
        ("presign_ttl", "PT16M"),
    ],
)
def test_weak_or_impossible_values_are_refused(field: str, value: str) -> None:
    with pytest.raises(ValidationError):
        Settings(**{**GOOD, field: value})


def test_secrets_do_not_show() -> None:
    assert "Kf93jd2kQ" not in repr(Settings(**GOOD))


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Good variables in the environment, read anew."""
    for name, value in GOOD.items():
        monkeypatch.setenv(f"DARKROOM_{name.upper()}", value)
    get_settings.cache_clear()
    yield monkeypatch
    get_settings.cache_clear()


def test_every_mistake_is_a_line_without_its_value(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("DARKROOM_LEASE", "Kf93jd2kQ")
    variables.delenv("DARKROOM_REDIS_URL")
    with pytest.raises(SettingsError) as caught:
        get_settings()
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["DARKROOM_REDIS_URL", "DARKROOM_LEASE"]
    assert "Kf93jd2kQ" not in str(caught.value)


def test_a_rule_over_several_variables_shows_none_of_them(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("DARKROOM_REDIS_URL", "redis://redis:6379/0")
    with pytest.raises(SettingsError) as caught:
        get_settings()
    assert str(caught.value) == "DARKROOM_REDIS_URL has no password"


@pytest.mark.parametrize("spelling", ["DARKROOM_OLD_NAME", "darkroom_old_name"])
def test_an_old_variable_stops_the_start_and_names_the_new_one(
    variables: pytest.MonkeyPatch, spelling: str
) -> None:
    """Ignored, it would change what the service does without a word."""
    variables.setattr(module, "RENAMED", {"DARKROOM_OLD_NAME": "DARKROOM_LEASE"})
    get_settings()
    get_settings.cache_clear()
    variables.setenv(spelling, "PT20S")
    with pytest.raises(SettingsError) as caught:
        get_settings()
    assert str(caught.value) == "DARKROOM_OLD_NAME is now called DARKROOM_LEASE"


def test_an_old_secret_file_stops_the_start_too(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables.setattr(module, "RENAMED", {"DARKROOM_OLD_NAME": "DARKROOM_LEASE"})
    variables.setenv("DARKROOM_SECRETS_DIR", str(tmp_path))
    (tmp_path / "darkroom_old_name").write_text("PT20S")
    with pytest.raises(SettingsError, match="DARKROOM_OLD_NAME is now called DARKROOM_LEASE"):
        get_settings()


def test_secrets_are_read_from_the_folder_that_is_named_and_empty_keys_are_none(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A Secret whose keys must be there is all that some installations can have."""
    for name in ("s3_access_key", "s3_secret_key", "redis_url"):
        variables.delenv(f"DARKROOM_{name.upper()}")
        text = "redis://:from-a-file@redis:6379/0" if name == "redis_url" else "\n"
        (tmp_path / f"darkroom_{name}").write_text(text)
    variables.setenv("DARKROOM_SECRETS_DIR", str(tmp_path))
    settings = get_settings()
    assert "from-a-file" in settings.redis_url.get_secret_value()
    assert (settings.s3_access_key, settings.s3_secret_key) == (None, None)


def test_a_folder_of_secrets_that_is_not_there_stops_the_start(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables.setenv("DARKROOM_SECRETS_DIR", str(tmp_path / "mistyped"))
    with pytest.raises(SettingsError, match=r"DARKROOM_SECRETS_DIR: .*/mistyped is not a folder"):
        get_settings()


def test_renamed_variables_have_a_setting() -> None:
    known = {f"DARKROOM_{name.upper()}" for name in Settings.model_fields}
    assert set(module.RENAMED.values()) <= known
    assert not set(module.RENAMED) & known


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        ("-m", "worker", "cpu"),
        ("-m", "uvicorn", "api.app:create_app", "--factory", "--port=0"),
        ("-m", "migrations", "upgrade"),
        ("-m", "deploy.admin", "tenants", "list"),
    ],
    ids=lambda command: command[1],
)
def test_every_process_says_in_a_sentence_what_is_missing(command: tuple[str, ...]) -> None:
    environment = {name: v for name, v in os.environ.items() if not name.startswith("DARKROOM_")}
    ended = subprocess.run(
        [sys.executable, *command], check=False, env=environment, capture_output=True, text=True
    )
    assert ended.returncode != 0
    assert "DARKROOM_DATABASE_URL: Field required" in ended.stderr
    assert "Traceback" not in ended.stderr
