"""The operator's command line: tenants, keys, quotas."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from deploy import admin
from shared.core.settings import Settings
from tests.processes import ApiProcess, wait_until

Command = Callable[..., Any]


@pytest.fixture
def command(settings: Settings, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `darkroom-server admin --json …` and gives what it answered."""

    def run(*arguments: str) -> Any:
        assert admin.main(["--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def key_id(key: str) -> str:
    return key.split("_")[1]


def test_tenants(command: Command) -> None:
    command("tenants", "create", "an operator's team")
    command("tenants", "create", "an operator's team")
    named = [row for row in command("tenants", "list") if row["name"] == "an operator's team"]
    assert [row["live_keys"] for row in named] == [0]


def test_a_key_is_made_rotated_and_revoked(command: Command, guarded: ApiProcess) -> None:
    made = command("keys", "create", "--tenant", "ops", "--name", "ci", "--scope", "jobs:read",
                   "--requests-per-minute", "600")  # fmt: skip
    old = made["key"]
    new = command("keys", "rotate", key_id(old), "--grace", "1")["key"]
    listed = {row["id"]: row for row in command("keys", "list", "--tenant", "ops")}
    assert {row["state"] for row in listed.values()} == {"live"}
    assert listed[key_id(old)]["expires_at"] is not None
    assert listed[key_id(new)]["scopes"] == ["jobs:read"]
    assert listed[key_id(new)]["quotas"] == {"requests_per_minute": 600}
    assert old not in json.dumps(listed)
    for key in (old, new):
        with guarded.client(key) as http:
            assert http.get("/v1/jobs").status_code == 200
    command("keys", "revoke", key_id(new))
    with guarded.client(new) as http:  # which has seen the key alive
        wait_until(lambda: http.get("/v1/jobs").status_code == 401, 30, "the end of the key")
    states = {row["id"]: row["state"] for row in command("keys", "list", "--tenant", "ops")}
    assert states == {key_id(old): "live", key_id(new): "revoked"}
    assert admin.main(["keys", "rotate", key_id(new)]) == 1


def test_a_rotated_key_keeps_the_model_chosen_through_the_web_uis_api(
    command: Command, guarded: ApiProcess
) -> None:
    old = command("keys", "create", "--tenant", "painters", "--name", "webui")["key"]
    with guarded.client(old) as http:
        first = http.get("/sdapi/v1/options").json()["sd_model_checkpoint"]
        titles = [model["title"] for model in http.get("/sdapi/v1/sd-models").json()]
        other = next(title for title in titles if title != first)
        chosen = http.post("/sdapi/v1/options", json={"sd_model_checkpoint": other})
        assert chosen.status_code == 200
    new = command("keys", "rotate", key_id(old), "--grace", "1")["key"]
    with guarded.client(new) as http:
        assert http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == other


def test_a_rotated_key_ends_when_the_old_one_would(command: Command) -> None:
    made = command("keys", "create", "--tenant", "guests", "--name", "x", "--expires-in", "3")
    new = command("keys", "rotate", key_id(made["key"]), "--grace", "9")["key"]
    ends = {row["id"]: row["expires_at"] for row in command("keys", "list", "--tenant", "guests")}
    assert ends[key_id(new)] == ends[key_id(made["key"])] is not None
    over = command("keys", "create", "--tenant", "guests", "--name", "x", "--expires-in", "-1")
    assert admin.main(["keys", "rotate", key_id(over["key"])]) == 1


def test_quotas_are_replaced_and_lifted(command: Command) -> None:
    made = command("keys", "create", "--tenant", "quotas", "--name", "x", "--model", "sim")["key"]
    changed = command("keys", "quotas", key_id(made), "--concurrent-jobs", "2")
    assert changed["quotas"] == {"concurrent_jobs": 2}
    assert command("keys", "quotas", key_id(made))["quotas"] is None


def test_a_key_alone_is_what_a_script_gets(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert admin.main(["keys", "create", "--tenant", "ops", "--name", "plain"]) == 0
    assert capsys.readouterr().out.startswith("drk_")


@pytest.mark.parametrize(
    "arguments",
    [["keys", "revoke", "nobody"], ["keys", "quotas", "nobody", "--concurrent-jobs", "1"],
     ["keys", "create", "--tenant", "t", "--name", "n", "--concurrent-jobs", "0"]],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_sentence(
    settings: Settings, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert admin.main(arguments) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err[:7]) == ("", "error: ")
