"""The GPU benchmark runs from end to end in its tiny mode, and writes both its files."""

import json
import os
import subprocess
import sys
from pathlib import Path

from shared.core.schedulers import SCHEDULERS


def test_tiny_mode(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu", "--tiny", "--out", str(tmp_path)],
        check=True,
        capture_output=True,
        timeout=170,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    (model,) = json.loads((tmp_path / "bench-gpu.json").read_text())["models"]
    assert set(model["exactness"]["share"]) == set(SCHEDULERS)
    assert set(model["exactness"]["share"].values()) == {1.0}
    assert [line["rows"] for line in model["engine"]] == [1, 2]
    assert all(line["median"] > 0 for line in model["engine"])
    assert "every scheduler bit-exact" in (tmp_path / "bench-gpu.md").read_text()
