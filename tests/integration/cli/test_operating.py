"""`doctor`, `webhooks`, `keys`, `models`, `usage`, `workers`: looking after the server."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkroom import Client
from darkroom.cli import doctor
from darkroom.cli.failures import ExitCode
from tests.integration.cli.conftest import HELD, Darkroom, Program
from tests.processes import WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("cpu_worker")


def checks(answer: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for check in json.loads(answer)["checks"]:
        found.setdefault(check["name"], []).append(check)
    return found


def none_waits(client: Client, model: str) -> bool:
    """Whether the model's queues are empty. The operator sees those of every tenant."""
    return not any(queue.queued for queue in client.queues.list() if queue.model == model)


def test_the_doctor_finds_a_running_system_well(
    darkroom: Darkroom, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_TIMEOUT", 60.0)  # a CPU worker may still load its model
    client.generate("a lake")
    wait_until(lambda: none_waits(client, "sim"), 120, "the end of what other tests have left")
    done = darkroom("doctor", "--json")
    found = checks(done.stdout)
    for name in ("server", "clock", "parts", "key", "search", "images"):
        assert [check["state"] for check in found[name]] == ["ok"], found[name]
    assert any("sim is served" in check["finding"] for check in found["models"])
    (queue,) = [c for c in found["queue"] if c["finding"].startswith("sim, interactive: ")]
    assert queue["state"] == "ok"
    kinds = [check["finding"] for check in found["workers"] if check["state"] == "ok"]
    assert any("(gpu" in finding for finding in kinds)
    assert any("(cpu" in finding for finding in kinds)
    unserved = [check for check in found["models"] if check["state"] == "warning"]
    assert all("worker generate --model" in check["advice"] for check in unserved)
    assert done.exit_code == (0 if json.loads(done.stdout)["healthy"] else 10)


def test_without_the_operators_scope_the_doctor_looks_at_the_keys_own_jobs(
    darkroom: Darkroom, api_key: str
) -> None:
    found = checks(darkroom("doctor", "--json", DARKROOM_API_KEY=api_key).stdout)
    (queue,) = found["queue"]
    assert "running" in queue["finding"]
    assert "your" in queue["finding"]


def test_the_doctor_says_what_is_wrong_and_what_to_do(darkroom: Darkroom) -> None:
    away = darkroom("doctor", "--json", DARKROOM_URL="http://127.0.0.1:9")
    assert away.exit_code == 10
    assert "make run" in checks(away.stdout)["server"][0]["advice"]
    locked = darkroom("doctor", "--json", DARKROOM_API_KEY="drk_wrong_key")
    assert locked.exit_code == 10
    assert checks(locked.stdout)["key"][0]["state"] == "fault"
    nowhere = darkroom("doctor", DARKROOM_URL="", DARKROOM_API_KEY="")
    assert nowhere.exit_code == 10
    assert nowhere.stdout.startswith("fault\tsettings\t")


def test_events_are_received_verified_and_printed(
    program: Callable[..., Program], client: Client
) -> None:
    listening = program("webhooks", "listen", "--event", "job.succeeded", "--json")
    listening.wait_for(lambda: "Listening" in listening.stderr, "the receiver")
    assert len(client.webhooks.endpoints.list().all()) == 1
    (image,) = client.generate("a lake")
    listening.wait_for(lambda: listening.stdout.endswith("\n"), "the event")
    event = json.loads(listening.stdout.splitlines()[0])
    assert event["type"] == "job.succeeded"
    assert event["data"]["id"] == image.job_id
    assert listening.end(signal.SIGTERM) == 130
    assert client.webhooks.endpoints.list().all() == []
    assert "Traceback" not in listening.stderr


def test_listening_ends_after_so_many_events(
    program: Callable[..., Program], darkroom: Darkroom, client: Client
) -> None:
    listening = program("webhooks", "listen", "--count", "1")
    listening.wait_for(lambda: "Listening" in listening.stderr, "the receiver")
    job = darkroom("generate", "a lake", "--detach").stdout.strip()
    assert listening.end() == 0
    assert listening.stdout.split("\t")[1:3] == ["job.succeeded", job]
    assert client.webhooks.endpoints.list().all() == []


def test_receivers_are_registered_and_what_they_got_is_listed(darkroom: Darkroom) -> None:
    made = darkroom("webhooks", "add", "http://127.0.0.1:9/x", "-e", "job.canceled", "--json")
    endpoint = json.loads(made.stdout)
    assert endpoint["secret"].startswith("whsec_")
    job = darkroom("generate", "a lake", "--model", HELD, "--detach").stdout.strip()
    darkroom("jobs", "cancel", job)
    listed = darkroom("webhooks", "deliveries", "--endpoint", endpoint["id"], "--json")
    (delivery,) = json.loads(listed.stdout)
    assert (delivery["event"], delivery["job_id"]) == ("job.canceled", job)
    again = darkroom("webhooks", "redeliver", delivery["id"])
    assert again.stdout.startswith(f"delivery\t{delivery['id']}\n")
    ranged = darkroom("webhooks", "redeliver", endpoint["id"], "--since", "1h", "--all")
    assert ranged.stdout.startswith("deliveries\t")
    assert endpoint["id"] in darkroom("webhooks", "endpoints").stdout
    assert darkroom("webhooks", "remove", endpoint["id"]).exit_code == 0
    assert darkroom("webhooks", "remove", endpoint["id"]).exit_code == 4


def test_keys_are_made_used_and_ended(darkroom: Darkroom) -> None:
    made = darkroom(
        *("keys", "create", "a page", "--scope", "jobs:read"), "--quota", "concurrent_jobs=2"
    )
    key = made.stdout.strip()
    assert key.startswith("drk_")
    assert darkroom("jobs", "list", DARKROOM_API_KEY=key).exit_code == 0
    refused = darkroom("generate", "a lake", DARKROOM_API_KEY=key)
    assert refused.exit_code == 3
    assert "keys create" in refused.stderr
    usage = dict(
        line.split("\t") for line in darkroom("usage", DARKROOM_API_KEY=key).stdout.splitlines()
    )
    assert usage["concurrent jobs"] == "0 of 2 used"
    name = usage["key"]
    assert name in darkroom("keys", "list").stdout
    assert darkroom("keys", "revoke", name).exit_code == 0
    assert darkroom("jobs", "list", DARKROOM_API_KEY=key).exit_code == 3


def test_models_and_workers_are_listed(darkroom: Darkroom, generate_worker: WorkerProcess) -> None:
    rows = [line.split("\t") for line in darkroom("models").stdout.splitlines()]
    assert rows[0][0] == "sim (default)"
    assert rows[0][1].startswith("by ")
    workers = json.loads(darkroom("workers", "list", "--json").stdout)
    # Others may be on record for half a minute after they were killed.
    name = next(each["name"] for each in workers if "sim" in [m["name"] for m in each["models"]])
    shown = darkroom("workers", "show", name)
    assert shown.stdout.startswith(f"worker\t{name}\n")
    try:
        drained = json.loads(darkroom("workers", "drain", name, "--json").stdout)
        assert drained["drain"] is not None
    finally:
        resumed = json.loads(darkroom("workers", "resume", name, "--json").stdout)
    assert resumed["drain"] is None
    assert darkroom("workers", "show", "nobody").exit_code == 4


# --- Where the key comes from ---


def test_a_login_is_tried_saved_and_found_by_later_commands(
    darkroom: Darkroom, environ: dict[str, str], tmp_path: Path
) -> None:
    url, key = environ["DARKROOM_URL"], environ["DARKROOM_API_KEY"]
    nothing = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    nothing |= {"DARKROOM_URL": "", "DARKROOM_API_KEY": ""}
    refused = darkroom("login", url, stdin="drk_nobody_knows\n", **nothing)
    assert refused.exit_code == ExitCode.AUTH
    assert not (tmp_path / "config").exists()
    done = darkroom("login", f"{url}/", stdin=f"{key}\n", **nothing)
    assert done.exit_code == 0, done.stderr
    shown = [darkroom("config", **nothing), darkroom("config", "--json", **nothing)]
    secret = key.rpartition("_")[2]
    for each in (done, *shown):
        assert secret not in each.stdout + each.stderr
    assert json.loads(shown[1].stdout)["url"] == url
    assert "keys.json" in json.loads(shown[1].stdout)["key_source"]
    assert darkroom("usage", **nothing).exit_code == 0
    assert darkroom("logout", **nothing).exit_code == 0
    assert darkroom("usage", **nothing).exit_code == ExitCode.USAGE


def test_a_login_works_in_a_folder_that_names_another_machine(
    darkroom: Darkroom, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".darkroom").mkdir()
    (tmp_path / ".darkroom" / "env").write_text("DARKROOM_URL=http://elsewhere:3\n")
    places = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "DARKROOM_URL": ""}
    url, key = environ["DARKROOM_URL"], environ["DARKROOM_API_KEY"]
    done = darkroom("login", url, stdin=f"{key}\n", **places)
    assert done.exit_code == 0, done.stderr
    assert "is saved in" in done.stderr
    assert "Note: " in done.stderr
    assert "names http://elsewhere:3" in done.stderr
    # The latest login's is forgotten, whatever this folder or a variable names.
    places["DARKROOM_URL"] = "http://another:4"
    assert darkroom("logout", **places).exit_code == 0


def test_config_names_the_place_of_each(darkroom: Darkroom, environ: dict[str, str]) -> None:
    shown = json.loads(darkroom("config", "--url", "http://other:1", "--json").stdout)
    assert (shown["url"], shown["url_source"]) == ("http://other:1", "argument")
    assert shown["key_source"] == "DARKROOM_API_KEY"
    assert environ["DARKROOM_API_KEY"] not in str(shown)
