"""`darkroom batch`: into a folder, each image once, whatever interrupts."""

import hashlib
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from darkroom import Client
from darkroom.cli.batch_folder import FolderState, fingerprint
from tests.integration.cli.conftest import HELD, Darkroom, Program
from tests.processes import WorkerProcess

pytestmark = pytest.mark.usefixtures("cpu_worker")


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of lines."""

    def write(lines: Sequence[Any], name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return path

    return write


def hats(count: int, steps: int = 4) -> list[dict[str, Any]]:
    return [
        {"custom_id": f"hat-{n}", "prompt": f"hat {n}", "seed": n, "steps": steps}
        for n in range(count)
    ]


def images(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of what is there."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")
    }


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_and_makes_each_image_once(
    *,
    how: signal.Signals,
    source: Callable[..., Path],
    program: Callable[..., Program],
    client: Client,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    count = 24
    lines = hats(count)
    for line in lines[count // 2 :]:
        line["model"] = HELD  # However quick the machine, it cannot be through at the stop.
    file = source(lines)
    out = tmp_path / "out"
    first = program("batch", "run", file, "--out", out)
    first.wait_for(lambda: len(images(out)) >= 5, "the first images")
    code = first.end(how)
    before = images(out)
    assert 5 <= len(before) <= count // 2
    if how is not signal.SIGKILL:
        assert code == 130
        assert "Run the same command again" in first.stderr
        assert "Traceback" not in first.stderr
    state = FolderState.read(out)
    assert state is not None
    assert state.batch_id is not None

    with WorkerProcess(environment, ["generate", "--model", HELD], tmp_path / "held.log"):
        again = program("batch", "run", file, "--out", out, "--json")
        assert again.end() == 0, again.stderr
    told = json.loads(again.stdout)
    assert told["batch"]["id"] == state.batch_id
    assert told["batch"]["counts"]["succeeded"] == count
    assert told["new"] == count - len(before)

    after = images(out)
    assert set(after) == {f"hat-{n}_{n}.png" for n in range(count)}
    assert after.items() >= before.items()
    on_record = {
        f"{item.custom_id}_{image.seed}.png": image.sha256
        for item in client.batches.items(state.batch_id)
        for image in item.images
    }
    assert after == on_record
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"hat-{n}" for n in range(count)]
    assert [path.name for path in out.iterdir() if path.name.endswith(".part")] == []


def test_a_submission_whose_answer_was_lost_is_not_made_twice(
    darkroom: Darkroom, source: Callable[..., Path], client: Client, tmp_path: Path
) -> None:
    file = source(hats(2))
    folder = tmp_path / "out"
    folder.mkdir()
    state = FolderState.new(folder, file, fingerprint(file, {}), client.url)
    made = client.batches.submit(file=file, idempotency_key=state.idempotency_key)
    # Killed here: the server has the batch, the folder does not know of it.
    done = darkroom("batch", "run", file, "--out", folder, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["batch"]["id"] == made.id


def test_running_it_once_more_changes_nothing(
    darkroom: Darkroom, source: Callable[..., Path], tmp_path: Path
) -> None:
    file = source(['"{red|blue} hat"', {"custom_id": "a/b", "prompt": "two", "num_images": 2}])
    first = json.loads(darkroom("batch", "run", file, "--json").stdout)
    folder = tmp_path / "prompts"
    assert (first["folder"], first["new"]) == ("prompts", 4)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert len(before) == 4
    again = darkroom("batch", "run", file)
    assert again.exit_code == 0
    assert dict(line.split("\t") for line in again.stdout.splitlines())["new"] == "0"
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.png")} == before
    next(iter(before)).unlink()
    assert json.loads(darkroom("batch", "run", file, "--json").stdout)["new"] == 1


def test_a_folder_belongs_to_one_batch(darkroom: Darkroom, source: Callable[..., Path]) -> None:
    file = source(hats(1))
    assert darkroom("batch", "run", file, "--out", "out").exit_code == 0
    other = darkroom("batch", "run", file, "--out", "out", "--default", "steps=5")
    assert other.exit_code == 2
    assert "--out" in other.stderr


def test_a_refused_file_can_be_corrected_and_run_into_the_same_folder(
    darkroom: Darkroom, source: Callable[..., Path]
) -> None:
    file = source([*hats(1), {"custom_id": "bad", "prompt": "x", "steps": 0}])
    refused = darkroom("batch", "run", file, "--out", "out")
    assert refused.exit_code == 5
    assert "Line 2" in refused.stderr
    batch = refused.stderr.split("darkroom batch errors ")[1].split()[0]
    assert "greater_than_equal" in darkroom("batch", "errors", batch).stdout
    checked = darkroom("batch", "run", file, "--dry-run", "--json")
    assert (checked.exit_code, json.loads(checked.stdout)["accepted"]) == (5, False)
    assert darkroom("batch", "run", source(hats(1)), "--out", "out").exit_code == 0


def test_good_lines_can_be_run_without_the_bad(
    darkroom: Darkroom, source: Callable[..., Path], tmp_path: Path
) -> None:
    file = source([*hats(1), {"custom_id": "bad", "prompt": "x", "steps": 0}])
    done = darkroom("batch", "run", file, "--on-error", "skip", "--default", "session_id=hats")
    facts = dict(line.split("\t") for line in done.stdout.splitlines())
    assert (facts["images"], facts["invalid lines"]) == ("1", "1")
    assert (tmp_path / "prompts" / "hat-0_0.png").is_file()


def test_a_batch_is_steered_from_the_terminal(darkroom: Darkroom, client: Client) -> None:
    batch = client.batches.submit([{"prompt": f"hat {n}", "model": HELD} for n in range(3)])
    assert json.loads(darkroom("batch", "pause", batch.id, "--json").stdout)["paused"] is True
    shown = dict(
        line.split("\t")[:2] for line in darkroom("batch", "status", batch.id).stdout.splitlines()
    )
    assert shown["state"] == "paused"
    assert json.loads(darkroom("batch", "resume", batch.id, "--json").stdout)["paused"] is False
    assert darkroom("batch", "cancel", batch.id).exit_code == 0
    client.batches.wait(batch, timeout=120)
    fetched = darkroom("batch", "fetch", batch.id, "--out", "out")
    assert fetched.exit_code == 9
    assert darkroom("batch", "retry", batch.id).exit_code == 6
    rows = darkroom("batch", "list", "--state", "canceled").stdout.splitlines()
    assert batch.id in [row.split("\t")[0] for row in rows]


def test_a_list_names_its_batches_in_80_columns(darkroom: Darkroom, client: Client) -> None:
    name = "hats of [b]wool[/b] for the shop in the old town, and scarves"
    lines = [{"prompt": "hat", "model": HELD, "num_images": 4}] * 3
    batch = client.batches.submit(lines, name=name)
    client.batches.cancel(batch)
    (raw,) = json.loads(darkroom("batch", "list", "--limit", "1", "--json").stdout)
    assert (raw["id"], raw["name"]) == (batch.id, name)
    (row,) = darkroom("batch", "list", "--limit", "1").stdout.splitlines()
    assert name in row.split("\t")
    terminal = {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "80"}
    table = darkroom("batch", "list", "--limit", "1", **terminal).stdout.splitlines()
    assert max(map(len, table)) <= 80
    assert table[0].split() == ["batch", "state", "done", "name", "age"]
    assert batch.id in table[2]
    assert "hats of [b]wool[/b]" in table[2]
    assert len(table) == 4, "a name takes two lines at most"


def test_prompts_may_come_from_stdin_and_run_once(darkroom: Darkroom, client: Client) -> None:
    lines = "a hat of stdin\na {red|blue} scarf\n"
    refused = darkroom("batch", "run", "-", stdin=lines)
    assert refused.exit_code == 2
    assert "--out" in refused.stderr
    counted = json.loads(darkroom("batch", "run", "-", "--dry-run", "--json", stdin=lines).stdout)
    assert (counted["lines"], counted["jobs"]) == (2, 3)
    done = darkroom("batch", "run", "-", "--default", "steps=2", "--out", "o", stdin=lines)
    assert done.exit_code == 0, done.stderr
    again = darkroom("batch", "run", "-", "--default", "steps=2", "--out", "o", stdin=lines)
    facts = [dict(line.split("\t") for line in each.stdout.splitlines()) for each in (done, again)]
    assert facts[0]["batch"] == facts[1]["batch"]
    assert [each["new"] for each in facts] == ["3", "0"]
