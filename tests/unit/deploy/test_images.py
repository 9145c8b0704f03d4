"""`make images`: which engine, which base, which command. `make container-test` runs it."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.docker.images import (
    DOCKERFILES,
    ImagesFailed,
    NoBase,
    NoEngine,
    base_of,
    build,
    build_command,
    by_digest,
    find_engine,
    save,
    try_archive,
)

DIGEST = f"sha256:{'5' * 64}"
Fake = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a shell script on PATH in an engine's place; returns the file of its command lines."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    def make(name: str, script: str = "") -> Path:
        calls = tmp_path / f"{name}.calls"
        calls.touch()
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n{script}\n', "utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return calls

    return make


def test_the_first_engine_that_answers_is_taken(fake: Fake) -> None:
    fake("docker", "echo 'Cannot connect to the daemon' >&2; exit 1")
    fake("buildah")
    assert find_engine() == "buildah"
    with pytest.raises(NoEngine, match="docker: Cannot connect to the daemon"):
        find_engine("docker")
    with pytest.raises(NoEngine, match="podman is not installed"):
        find_engine("podman")


def test_a_base_is_taken_by_its_digest(fake: Fake) -> None:
    calls = fake("podman", f'[ "$1" = pull ] && : > $0.pulled; [ -f $0.pulled ] && echo {DIGEST}')
    assert by_digest("podman", "hub.example:5000/python:3.11") == (
        f"hub.example:5000/python@{DIGEST}"
    )
    assert "pull hub.example:5000/python:3.11" in calls.read_text()
    calls.write_text("")
    named = f"python@{DIGEST}"
    assert by_digest("podman", named) == named
    assert calls.read_text() == ""


def test_a_base_built_here_may_have_no_digest(fake: Fake) -> None:
    fake("docker", "echo '<none>'")
    assert by_digest("docker", "own/python:3.11") == "own/python:3.11"


def test_a_base_that_cannot_be_had_is_named(fake: Fake) -> None:
    fake("podman", "echo 'no route to host' >&2; exit 125")
    with pytest.raises(NoBase, match=r"python:3\.11.*PYTHON_IMAGE.*no route to host"):
        by_digest("podman", "python:3.11")


def test_nothing_is_built_where_one_base_is_missing(fake: Fake) -> None:
    """A release has all images or ends at once."""
    calls = fake("podman", f'[ "$4" = rclone ] || [ "$2" = rclone ] && exit 125; echo {DIGEST}')
    variables = {"PYTHON_IMAGE": "python", "RCLONE_IMAGE": "rclone"}
    with pytest.raises(NoBase, match="cannot pull rclone"):
        list(build("podman", variables))
    assert "build" not in calls.read_text()


def test_secrets_indexes_and_flags_reach_the_build(tmp_path: Path) -> None:
    variables = {
        "PIP_CONF": str(tmp_path / "pip.conf"),
        "CA_PEM": str(tmp_path / "ca.pem"),
        "EXTRA_INDEX": "https://index.example/cpu",
        "IMAGE_FLAGS": "--isolation chroot",
        "TAG": "trial",
    }
    base = f"python@{DIGEST}"
    command = build_command("buildah", "worker", base, variables)
    assert command[:2] == ["buildah", "build"]
    assert command[-3:] == ["--isolation", "chroot", "."]
    assert {
        "--tag=darkroom-worker:trial",
        "--format=docker",
        f"--build-arg=PYTHON={base}",
        "--build-arg=EXTRA_INDEX=https://index.example/cpu",
        f"--secret=id=pip.conf,src={tmp_path}/pip.conf",
        f"--secret=id=ca.pem,src={tmp_path}/ca.pem",
        f"--label=org.opencontainers.image.base.digest={DIGEST}",
    } <= set(command)
    store = build_command("docker", "s3", "rclone/rclone", variables)
    assert not [part for part in store if "secret" in part or "format" in part]


def test_a_base_of_ones_own_replaces_the_hubs() -> None:
    for dockerfile in DOCKERFILES.values():
        base = base_of(dockerfile, {})
        assert base_of(dockerfile, {f"{base.argument}_IMAGE": "own:1"}).name == "own:1"


def test_a_failed_build_stops_the_rest(fake: Fake) -> None:
    calls = fake("docker", f'[ "$1" = build ] && exit 1; echo python@{DIGEST}')
    with pytest.raises(ImagesFailed, match=r"could not build Dockerfile\.api"):
        list(build("docker", {}))
    assert calls.read_text().count("\nbuild ") == 1


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_an_archive_replaces_an_earlier_one(engine: str, fake: Fake, tmp_path: Path) -> None:
    archive = tmp_path / "dist" / "darkroom-api-1.tar"
    archive.parent.mkdir()
    archive.write_text("earlier", "utf-8")
    fake(engine, f"[ ! -e {archive} ] && echo image > {archive}")
    saved = save(engine, "darkroom-api:1", tmp_path / "dist")
    assert saved == archive
    assert archive.read_text("utf-8") == "image\n"


def test_an_archive_is_tried_where_its_image_is_not(fake: Fake, tmp_path: Path) -> None:
    calls = fake("podman", '[ "$1" = run ] && echo "no such file" >&2 && exit 127; true')
    with pytest.raises(ImagesFailed, match=r"a\.tar.*no such file"):
        try_archive("podman", tmp_path / "a.tar", "darkroom-api:1")
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["rmi", "load", "run"]
