"""The Helm chart, rendered by Helm itself for each of its values files."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.dockerfiles import DEPLOY

CHART = DEPLOY / "helm" / "darkroom"
VALUES = {
    "default": (),
    "gpu": ("values-gpu.yaml",),
    "gpu-spot": ("values-gpu.yaml", "values-gpu-spot.yaml"),
    "minimal": ("values-minimal.yaml",),
    "backup": (str(Path(__file__).with_name("values-backup.yaml")),),
}
PREFIX = "studio-darkroom-"
"""Before the name of everything: a release that is not called darkroom shows what forgets it."""

Document = dict[str, Any]


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs Helm; skips the test where it is not installed (its wheel is for Linux)."""
    beside = Path(sys.executable).with_name("helm")
    program = str(beside) if beside.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("no helm on PATH")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@cache
def rendered(name: str, *more: str) -> list[Document]:
    """The manifests for a key of `VALUES`; `more` are further arguments of `helm template`."""
    files = (f"--values={CHART / file}" for file in VALUES[name])
    done = helm("template", "studio", str(CHART), "--namespace=images", *files, *more)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]
