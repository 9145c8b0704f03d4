"""Both distributions as a user installs them: from wheels, in a folder that knows no checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from darkroom_server.__main__ import COMMANDS
from tests.processes import PROJECT, free_port, wait_until

pytestmark = pytest.mark.long

SERVER = ("api", "deploy", "migrations", "shared", "worker")
ONLY_IN_CHECKOUTS = (
    "deploy/Dockerfile.",
    "deploy/compose.yaml",
    "deploy/docker/",
    "deploy/files/",
    "deploy/helm/",
    "deploy/secrets/",
    "deploy/demo_model/model_card.md",
    "deploy/demo_model/report.md",
)
"""Data for those who build images, run clusters, or want to know how the demo model was trained."""


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheels, and an empty folder to work in."""

    wheels: tuple[Path, Path]
    folder: Path
    work: Path

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of Darkroom's, and no other place to import from."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("DARKROOM_") and name != "PYTHONPATH"
        }
        return {**kept, "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(
        self, *command: str, seconds: float = 60, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """A program of the environment, to its end."""
        program = str(self.folder / "bin" / command[0])
        return subprocess.run(
            [program, *command[1:]],
            cwd=self.work,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[bytes]":
        """`python ARGUMENTS`, until somebody stops it; its output in `server.log`."""
        with (self.work / "server.log").open("ab") as log:
            return subprocess.Popen(
                [str(self.folder / "bin" / "python"), *arguments],
                cwd=self.work,
                env={**self.environment, **variables},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )


def build(folder: Path) -> tuple[Path, Path]:
    """The wheels of server and client, from a copy: a build leaves its own files in its source."""
    for name, parts in (
        (
            "server",
            ("pyproject.toml", "setup.py", "README.md", "LICENSE", "darkroom_server", *SERVER),
        ),
        (
            "client",
            tuple(
                f"client/{name}" for name in ("pyproject.toml", "README.md", "LICENSE", "darkroom")
            ),
        ),
    ):
        source = folder / name
        source.mkdir()
        for part in parts:
            whole, copy = PROJECT / part, source / Path(part).name
            if whole.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(whole, copy, ignore=ignored)
            else:
                shutil.copy(whole, copy)
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "wheels"]
    for name in ("server", "client"):
        subprocess.run([sys.executable, "-m", *command, f"./{name}"], cwd=folder, check=True)
    wheels = folder / "wheels"
    return next(wheels.glob("darkroom_server-*.whl")), next(wheels.glob("darkroom_client-*.whl"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheels in an environment that has what they need, and nothing else, from this one.

    A path file adds packages, but neither this environment's own path files nor its editable
    installations: what is called Darkroom comes from the wheels.
    """
    base = tmp_path_factory.mktemp("wheels")
    wheels = build(base)
    folder, work = base / "venv", base / "work"
    work.mkdir()
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", *map(str, wheels)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path_file = folder / "lib" / version / "site-packages" / "needed.pth"
    path_file.write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return Installed(wheels, folder, work)


def test_the_wheels_hold_all_that_is_read(installed: Installed) -> None:
    held: set[str] = set()
    for wheel in installed.wheels:
        names = zipfile.ZipFile(wheel).namelist()
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
        tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
        assert tops <= {"darkroom", "darkroom_server"}, "nothing that could meet another's `api`"
        held |= {name.removeprefix("darkroom_server/") for name in names}
    for root, packages in ((PROJECT, SERVER), (PROJECT / "client", ("darkroom",))):
        files = {
            str(path.relative_to(root))
            for package in packages
            for path in (root / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        missing = {name for name in files - held if not name.startswith(ONLY_IN_CHECKOUTS)}
        assert not missing
    script = "import darkroom, darkroom_server as s; print(darkroom.__file__, s.__file__)"
    places = installed.run("python", "-c", script).stdout.split()
    assert len(places) == 2
    assert all(Path(place).is_relative_to(installed.folder) for place in places), places


@pytest.mark.timeout(400)
def test_the_smoke_check_passes(installed: Installed) -> None:
    done = installed.run("darkroom-server", "smoke", seconds=360)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "README's" in done.stdout
    [images] = re.findall(r"Both images are in (\S+)", done.stdout)
    shutil.rmtree(images)
    assert list(installed.work.iterdir()) == [], "it leaves nothing where it was called"


@pytest.mark.parametrize(
    "program", ["darkroom", "darkroom-server", *(f"darkroom-server {name}" for name in COMMANDS)]
)
def test_the_commands_start(installed: Installed, program: str) -> None:
    done = installed.run(*program.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout.lower()


def test_the_client_knows_its_version(installed: Installed) -> None:
    """Its distribution has another name than its package."""
    version = installed.wheels[1].name.split("-")[1]
    assert installed.run("darkroom", "--version").stdout == f"darkroom {version}\n"
    agent = "from darkroom._sync import transport; print(transport.USER_AGENT)"
    assert installed.run("python", "-c", agent).stdout == f"darkroom-python/{version}\n"


def test_an_unknown_command_is_refused(installed: Installed) -> None:
    done = installed.run("darkroom-server", "serve")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no command 'serve'" in done.stderr


def test_the_api_has_its_models_and_pages(installed: Installed) -> None:
    """Also where nobody says where `models.toml` is. It starts while its servers are away."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    nowhere = {
        "DARKROOM_DATABASE_URL": "postgresql://darkroom:a-long-enough-password@127.0.0.1:1/none",
        "DARKROOM_REDIS_URL": "redis://:a-long-enough-password@127.0.0.1:1/0",
        "DARKROOM_S3_ENDPOINT": "http://127.0.0.1:1",
        "DARKROOM_S3_ACCESS_KEY": "access-key-of-nobody",
        "DARKROOM_S3_SECRET_KEY": "a-long-enough-secret-key-of-nobody",
        "DARKROOM_METRICS_PORT": str(free_port()),
    }
    arguments = ("-m", "darkroom_server", "api", f"--port={port}")
    process = installed.start(*arguments, **nowhere)
    try:
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
            wait_until(lambda: answers(process, http, "/docs"), 90, "the installed API")
            for page in ("/docs", "/redoc"):
                assets = re.findall(r'(?:src|href)="([^"]+)"', http.get(page).text)
                assert assets
                for asset in assets:
                    assert http.get(asset).status_code == 200, asset
    finally:
        process.terminate()
        process.wait(20)


def test_the_playground_starts(installed: Installed) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    own = {"DARKROOM_URL": "http://127.0.0.1:1", "DARKROOM_API_KEY": "of-nobody"}
    process = installed.start("-m", "darkroom.playground", f"--port={port}", **own)
    try:
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
            wait_until(lambda: answers(process, http, "/_stcore/health"), 90, "the playground")
    finally:
        process.terminate()
        process.wait(20)


def answers(process: "subprocess.Popen[bytes]", http: httpx2.Client, path: str) -> bool:
    assert process.poll() is None, "it has ended"
    try:
        return http.get(path).status_code == 200
    except httpx2.TransportError:
        return False


def test_missing_packages_are_named(installed: Installed) -> None:
    """Not a traceback, and no hint for a checkout only."""
    alone = installed.folder / "lib"
    [path_file] = alone.rglob("needed.pth")
    hidden = path_file.rename(path_file.with_suffix(".hidden"))
    try:
        done = installed.run("darkroom-server", "smoke")
    finally:
        hidden.rename(path_file)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"-m pip install .*'torch>=[\d.]+'", done.stderr)
    assert "'rich>=" in done.stderr
