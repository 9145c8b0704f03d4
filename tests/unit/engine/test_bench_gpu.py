"""The GPU benchmark: every part runs on toys, rows survive, time is kept, and little is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import fork_server
from tests.bench.gpu.__main__ import main
from tests.bench.gpu.models import PARTS, assembled, made_on

NEEDLESS = (
    *("sqlalchemy", "psycopg", "celery", "kombu", "redis", "boto3", "fastapi", "starlette"),
    *("structlog", "pytest"),
)


def _keys(folder: Path) -> list[str]:
    lines = (folder / "bench-gpu.jsonl").read_text().splitlines()
    return [json.loads(line)["key"] for line in lines]


@pytest.mark.long
def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    options = ["--tiny", "--out", str(tmp_path)]
    assert main([*options, "--from", "e/schnell/64/1", "--to", "e/schnell/64/1"]) == 0
    assert _keys(tmp_path) == ["e/schnell/64/1"]
    assert main([*options, "--from", "e/schnell/64/2", "--to", "e/schnell/64"]) == 0
    assert _keys(tmp_path) == ["e/schnell/64/1", "e/schnell/64/2"]
    page = (tmp_path / "bench-gpu.md").read_text()
    assert "toy-schnell, 64², 2 rows" in page
    assert "error" not in page


def test_no_row_begins_for_which_there_is_no_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tiny", "--out", str(tmp_path), "--from", "d", "--to", "e/sd3/64"]
    assert main([*options, "--budget", "5"]) == 0
    assert _keys(tmp_path) == []
    assert "go on with --from d/graphs/1." in capsys.readouterr().out


def test_an_unknown_row_is_refused_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--tiny", "--out", str(tmp_path), "--from", "z"]) == 2
    assert "b/bare/1" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "part", "millions"),
    [
        ("sd21", "unet", 866),
        ("sdxl", "unet", 2567),
        ("sd3", "transformer", 2028),
        ("flux", "transformer", 11901),
    ],
)
def test_models_have_their_published_width(name: str, part: str, millions: int) -> None:
    """Without memory for a single weight."""
    with made_on(torch.device("meta"), torch.float16):
        parts = PARTS[name]()
    network = getattr(assembled(name, parts), part)
    weights = list(network.parameters())
    assert round(sum(weight.numel() for weight in weights) / 1e6) == millions
    assert {weight.dtype for weight in weights} == {torch.float16}


def test_it_needs_no_database_no_queue_no_web(tmp_path: Path) -> None:
    log = tmp_path / "log"
    bare = fork_server.fork("heavy", ["tests.unit.engine.bare_machine", *NEEDLESS], os.environ, log)
    assert bare.wait(170) == 0, log.read_text()


@pytest.mark.long
def test_nor_do_its_libraries() -> None:
    command = [sys.executable, "-m", "tests.unit.engine.bare_machine", *NEEDLESS]
    subprocess.run(command, check=True, timeout=170)


@pytest.mark.long
@pytest.mark.timeout(1900)
def test_every_part_runs(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu", "--tiny", "--budget", "1800", "--out", tmp_path],
        check=True,
        capture_output=True,
        timeout=1860,
        # Compiled by itself: another test's compilers write into the same cache.
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")},
    )
    rows = [json.loads(line) for line in (tmp_path / "bench-gpu.jsonl").read_text().splitlines()]
    assert {row["key"][0] for row in rows} == set("abcdef")
    assert not [row for row in rows if "error" in row]
    exact = [row for row in rows if row["key"].startswith("a/")]
    assert all(row["text, one row = diffusers"] is True for row in exact)
    assert {row["same in crowds at 4 rows"] for row in exact} == {"1 of 1"}
