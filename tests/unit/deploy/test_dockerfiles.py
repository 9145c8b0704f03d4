"""The Dockerfiles: linted, and everything they copy and install exists."""

import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

from deploy.docker.healthy import is_healthy
from deploy.docker.metadata import write_metadata
from deploy.docker.prune import prune
from deploy.docker.requirements import requirements
from tests.processes import PROJECT
from tests.unit.deploy.dockerfiles import DEPLOY, DOCKERFILES, command_of, instructions

BY_NAME = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
HADOLINT = Path(sys.executable).with_name("hadolint")


@BY_NAME
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    linted = subprocess.run(
        [HADOLINT, "--no-color", dockerfile], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


@BY_NAME
def test_every_copied_file_exists_and_reaches_the_build(dockerfile: Path) -> None:
    for word, rest in instructions(dockerfile):
        if word != "COPY" or rest.startswith("--from="):
            continue
        *sources, _target = rest.split()
        for source in sources:
            assert (PROJECT / source).exists(), source
            assert _is_let_in(source), f".dockerignore keeps {source} out"


@BY_NAME
def test_it_runs_as_nobody_with_a_health_check(dockerfile: Path) -> None:
    words = dict(instructions(dockerfile))
    assert words["USER"] == "10001:10001"
    assert "HEALTHCHECK" in words
    assert "org.opencontainers.image.title" in words["LABEL"]


@BY_NAME
def test_the_base_says_its_version(dockerfile: Path) -> None:
    base = next(rest for word, rest in instructions(dockerfile) if word == "ARG")
    assert base.partition("=")[2].count(":") == 1
    assert not base.endswith("latest")


def test_extras_that_are_installed_exist() -> None:
    for name, pyproject, extra in (
        ("Dockerfile.api", "pyproject.toml", "api"),
        ("Dockerfile.worker", "pyproject.toml", "worker"),
        ("Dockerfile.playground", "client/pyproject.toml", "playground"),
    ):
        text = (DEPLOY / name).read_text("utf-8")
        copied = [rest.split() for word, rest in instructions(DEPLOY / name) if word == "COPY"]
        assert any(pyproject in sources for sources in copied)
        assert f"/build/pyproject.toml {extra} >" in text
        assert requirements(PROJECT / pyproject, [extra])


def test_the_api_image_gets_no_model_code() -> None:
    names = {
        line.split(">")[0].split("[")[0]
        for line in requirements(PROJECT / "pyproject.toml", ["api"])
    }
    assert not names & {"torch", "diffusers", "transformers", "sentence-transformers"}
    text = (DEPLOY / "Dockerfile.api").read_text("utf-8")
    assert "COPY worker" not in text
    assert "demo_model" not in text


def test_every_requirement_is_pinned() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (PROJECT / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    }
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    for extra in project["optional-dependencies"]:
        for line in requirements(PROJECT / "pyproject.toml", [extra]):
            name = line.split(">")[0].split("[")[0].lower().replace("_", "-")
            assert name in pinned, name


def test_pruning_leaves_what_the_api_reads(tmp_path: Path) -> None:
    services = ("botocore/data/s3/x.json", "botocore/data/sts/x.json")
    kept = (*services, "botocore/data/endpoints.json", "celery/app.py", "PIL/a.so")
    gone = (
        "botocore/data/ec2/x.json",
        "boto3/data/s3/x.json",
        "redis/typing.pyi",
        "wcwidth/t.py",
        "uvloop/loop.pyx",
    )
    for name in (*kept, *gone):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    prune(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)


def test_an_image_knows_its_version(tmp_path: Path) -> None:
    write_metadata(PROJECT / "pyproject.toml", tmp_path)
    [found] = distributions(name="darkroom-server", path=[str(tmp_path)])
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    assert found.version == project["version"]
    for name in ("api", "worker", "playground"):
        text = (DEPLOY / f"Dockerfile.{name}").read_text("utf-8")
        assert "python /build/metadata.py /build/pyproject.toml /packages" in text


def test_the_api_is_started_with_its_own_connection_class() -> None:
    command = command_of(DEPLOY / "Dockerfile.api")
    assert command[:4] == ["python", "-m", "uvicorn", "api.app:create_app"]
    assert "--http=api.core.connection:Connection" in command


def test_a_closed_port_is_not_healthy() -> None:
    assert not is_healthy("tcp://127.0.0.1:9")
    assert not is_healthy("http://127.0.0.1:9/healthz")


def _is_let_in(source: str) -> bool:
    """The rules of `.dockerignore` that this one uses: the last that matches decides."""
    let_in = True
    for line in (PROJECT / ".dockerignore").read_text("utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        inside = source == pattern or source.startswith(f"{pattern}/") or pattern == "*"
        if inside:
            let_in = rule.startswith("!")
    return let_in
