"""The Dockerfiles: linted, and everything they copy and install exists."""

import os
import subprocess
import sys
import time
import tomllib
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from darkroom_server.__main__ import COMMANDS
from deploy.docker import requirements
from deploy.docker.healthy import is_healthy
from deploy.docker.metadata import write_metadata
from deploy.docker.prune import prune
from shared.core.model_catalog import load_catalog
from tests.processes import PROJECT, Process, free_port, wait_until
from tests.unit.deploy.dockerfiles import (
    DEPLOY,
    DOCKERFILES,
    command_of,
    copies,
    copy_all,
    imported,
    instructions,
    is_module,
    is_ours,
    modules_named,
)

BY_NAME = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
REQUIREMENTS = requirements.FILE.read_text("utf-8").splitlines()[1:]
HADOLINT = Path(sys.executable).with_name("hadolint")


@BY_NAME
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    linted = subprocess.run(
        [HADOLINT, "--no-color", dockerfile], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


@BY_NAME
def test_every_copied_file_exists_and_reaches_the_build(dockerfile: Path) -> None:
    for source, _ in copies(dockerfile):
        assert (PROJECT / source).exists(), source
        assert _is_let_in(source), f".dockerignore keeps {source} out"


@BY_NAME
def test_an_image_has_every_module_that_its_code_imports(dockerfile: Path, tmp_path: Path) -> None:
    copy_all(dockerfile, tmp_path)
    app = tmp_path / "app"
    wanted = dict.fromkeys(modules_named(dockerfile), dockerfile.name)
    program, *arguments = command_of(dockerfile, "ENTRYPOINT") + command_of(dockerfile)
    if program == "darkroom-server":
        wanted[COMMANDS[arguments[0]].module] = program
    for path in app.rglob("*.py"):
        wanted |= dict.fromkeys(imported(path), str(path.relative_to(app)))
    ours = {name: user for name, user in wanted.items() if is_ours(name)}
    assert ours or dockerfile.name == "Dockerfile.s3"
    assert {name: user for name, user in ours.items() if not is_module(name, app)} == {}


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


@BY_NAME
def test_packages_can_come_from_a_private_index(dockerfile: Path) -> None:
    for word, rest in instructions(dockerfile):
        if word == "RUN" and "pip install" in rest:
            assert "--mount=type=secret,id=pip.conf,target=/etc/pip.conf" in rest
            assert "--mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem" in rest
            # By itself: `cert` in a pip.conf would need one.
            trusted = "if [ -f /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi"
            assert f"{trusted} && " in rest.replace("  ", " ")


@BY_NAME
def test_an_image_has_the_license(dockerfile: Path) -> None:
    assert ("LICENSE", "/licenses/") in copies(dockerfile)


@pytest.mark.parametrize("image", requirements.IMAGES)
def test_an_image_installs_what_it_needs_by_hash(image: str) -> None:
    lines = [line for line in REQUIREMENTS if image in line.partition(" # ")[2].split()]
    pinned = dict(line.split()[0].split("==") for line in lines)
    assert set(pinned) == requirements.packages(requirements.IMAGES[image]), "run `make lock`"
    assert all("--hash=sha256:" in line for line in lines)
    constraints = (PROJECT / "constraints.txt").read_text("utf-8").splitlines()
    known = {
        str(canonicalize_name(name)): version
        for name, separator, version in (line.partition("==") for line in constraints)
        if separator
    }
    assert {name: known[name] for name in pinned} == pinned, "run `make lock`"
    text = (DEPLOY / f"Dockerfile.{image}").read_text("utf-8")
    assert f"grep -E '# .*\\b{image}\\b' /build/requirements.txt" in text
    assert f"--require-hashes --no-deps --requirement=/build/{image}.txt" in text


def test_nothing_but_torch_is_installed_without_a_hash() -> None:
    for dockerfile in DOCKERFILES:
        for word, rest in instructions(dockerfile):
            if word == "RUN" and "pip install" in rest and "--require-hashes" not in rest:
                assert dockerfile.name == "Dockerfile.worker"
                assert rest.endswith(" torch")


@pytest.mark.parametrize("image", requirements.IMAGES)
def test_an_images_bill_of_materials_has_all_that_it_installs(image: str) -> None:
    listed = dict(line.split()[0].split("==") for line in requirements.installed(image))
    assert set(listed) >= requirements.packages(requirements.IMAGES[image])
    constraints = (PROJECT / "constraints.txt").read_text("utf-8").splitlines()
    assert (f"torch=={listed.get('torch')}" in constraints) is (image == "worker")


def test_the_api_image_gets_no_model_code() -> None:
    names = requirements.packages(requirements.IMAGES["api"])
    assert not names & {"torch", "diffusers", "transformers", "sentence-transformers"}
    text = (DEPLOY / "Dockerfile.api").read_text("utf-8")
    assert "COPY worker" not in text
    assert "demo_model" not in text


@pytest.mark.parametrize("file", ["models.toml", "helm/darkroom/files/models.toml"])
def test_the_workers_image_has_what_the_catalogue_names(file: str) -> None:
    catalogue = load_catalog(DEPLOY / file)
    copied = {Path("/", target) for _, target in copies(DEPLOY / "Dockerfile.worker")}
    for specs in (catalogue.model, catalogue.lora, catalogue.controlnet):
        for source in (spec.source for spec in specs):
            inside = Path(source.replace(str(DEPLOY), "/app/deploy"))
            assert (DEPLOY / inside.relative_to("/app/deploy")).exists(), source
            assert (copied - {Path("/app/deploy")}) & {inside, *inside.parents}, source


def test_every_requirement_is_pinned() -> None:
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for line in (PROJECT / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    }
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    for lines in (project["dependencies"], *project["optional-dependencies"].values()):
        for line in lines:
            name = canonicalize_name(Requirement(line).name)
            assert name in pinned or name.startswith("darkroom-"), name


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


@BY_NAME
def test_images_run_the_commands_of_the_wheel(dockerfile: Path) -> None:
    program, *arguments = command_of(dockerfile, "ENTRYPOINT") + command_of(dockerfile)
    if program == "darkroom-server":
        assert arguments[0] in COMMANDS
        assert "deploy/docker/darkroom-server /usr/local/bin/" in dockerfile.read_text("utf-8")


def test_the_playground_starts_where_its_image_has_packages(tmp_path: Path) -> None:
    """Outside `site-packages` Streamlit believes itself a checkout, and refuses a port."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "streamlit").symlink_to(str(distribution("streamlit").locate_file("streamlit")))
    port = free_port()
    variables = {"PYTHONPATH": os.pathsep.join([str(packages), str(PROJECT / "client")])}
    playground = Process(
        variables, ["-m", "darkroom.playground", f"--port={port}"], tmp_path / "log"
    )

    def healthy() -> bool:
        assert playground.child.poll() is None, playground.tail()
        return is_healthy(f"http://127.0.0.1:{port}/_stcore/health")

    playground.start()
    try:
        wait_until(healthy, 60, "a healthy playground")
    finally:
        playground.stop()


def test_a_closed_port_is_not_healthy() -> None:
    assert not is_healthy("tcp://127.0.0.1:9")
    assert not is_healthy("http://127.0.0.1:9/healthz")


def test_a_backup_is_healthy_until_two_are_missing(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    daily, weekly = (f"{manifest.as_uri()}?every={period}" for period in ("P1D", "P7D"))
    assert not is_healthy(daily)
    manifest.touch()
    assert is_healthy(daily)
    old = time.time() - 3 * 24 * 3600
    os.utime(manifest, (old, old))
    assert not is_healthy(daily)
    assert is_healthy(weekly)
    assert not is_healthy(f"{manifest.as_uri()}?every=PT6H")


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
