"""The Compose stack in containers of this machine, under a name and on ports of its own."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from deploy.docker.images import NoEngine, find_engine, tag_of
from deploy.docker.secrets import DEFAULT_FOLDER, make_secrets
from tests.processes import PROJECT, free_port, wait_until

SERVERS = ("postgres", "redis", "s3")
DARKROOM = ("api", "cpu-worker", "generate-worker-cpu", "playground")
_NAME = "darkroom-trial"
_STEP_SECONDS = 900.0


def find_compose() -> tuple[str, list[str]]:
    """The engine and the command that reads Compose files with it.

    Raises:
        NoEngine: one of them is missing.
    """
    engine = find_engine(os.environ.get("ENGINE"), ("docker", "podman"))
    commands = [["docker", "compose"]] if engine == "docker" else [["podman-compose"]]
    for command in commands:
        if (
            shutil.which(command[0])
            and not subprocess.run(
                [*command, "version"], capture_output=True, check=False
            ).returncode
        ):
            return engine, command
    raise NoEngine(f"{engine} is here, {' '.join(commands[0])} is not")


class Composition:
    """`compose.yaml` with the profiles for a CPU and backups; `close` removes all of it."""

    def __init__(self) -> None:
        self.engine, self._compose = find_compose()
        make_secrets(DEFAULT_FOLDER)
        api, s3, playground = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{api}"
        self.playground = f"http://127.0.0.1:{playground}"
        self._environment = {
            **os.environ,
            "DARKROOM_VERSION": tag_of("", os.environ).partition(":")[2],
            "DARKROOM_API_LISTEN": f"127.0.0.1:{api}",
            "DARKROOM_PUBLIC_URL": self.url,
            "DARKROOM_S3_LISTEN": f"127.0.0.1:{s3}",
            "DARKROOM_S3_PUBLIC_ENDPOINT": f"http://127.0.0.1:{s3}",
            "DARKROOM_PLAYGROUND_LISTEN": f"127.0.0.1:{playground}",
        }

    @property
    def api_key(self) -> str:
        """The first key."""
        return (DEFAULT_FOLDER / "darkroom_api_key").read_text("utf-8").strip()

    def start(self) -> None:
        """From nothing, or from what volumes hold, to a stack that is healthy."""
        self.start_servers()
        self.run("migrate")
        self.run("bootstrap")
        self._up(*DARKROOM)

    def start_servers(self) -> None:
        """Postgres, Redis and S3.

        In steps, since not every podman waits for `service_healthy`.
        """
        self._up(*SERVERS)

    def _up(self, *services: str) -> None:
        self.compose("up", "--detach", "--no-build", "--no-deps", *services)
        for service in services:
            wait_until(lambda name=service: self.is_healthy(name), 240, f"health of {service}")

    def run(self, service: str, *arguments: str) -> str:
        """A one-shot service to its end; gives what it printed."""
        return self.compose("run", "--rm", "--no-deps", "-T", service, *arguments)

    def compose(self, *arguments: str) -> str:
        """A command of Compose; gives its standard output."""
        profiles = [f"--profile={name}" for name in ("cpu", "backup", "restore")]
        file = ("--file", str(PROJECT / "deploy" / "compose.yaml"))
        return self._call([*self._compose, "--project-name", _NAME, *file, *profiles, *arguments])

    def ask(self, *arguments: str) -> str:
        """A command of the engine; gives its standard output."""
        return self._call([self.engine, *arguments])

    def container(self, service: str) -> str:
        """The id of a service's container."""
        labels = {"project": _NAME, "service": service}
        filters = [f"--filter=label=com.docker.compose.{key}={labels[key]}" for key in labels]
        return self.ask("ps", "--all", "--quiet", "--no-trunc", *filters).split()[0]

    def is_healthy(self, service: str) -> bool:
        """What the service's health check says."""
        container = self.container(service)
        if self.engine == "docker":
            state = self.ask("inspect", "--format={{.State.Health.Status}}", container)
            return state.strip() == "healthy"
        # Podman's own timer needs systemd.
        command = ["podman", "healthcheck", "run", container]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def execute(self, service: str, *command: str) -> str:
        """A command in a service's container."""
        return self.ask("exec", self.container(service), *command)

    def logs(self, service: str) -> str:
        """Its last lines."""
        container = self.container(service)
        command = [self.engine, "logs", "--tail=40", container]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return f"{service}:\n{done.stdout}{done.stderr}"

    def remove(self, *volumes: str) -> None:
        """All containers, and the volumes that are named."""
        self.compose("down", "--timeout", "40")
        if volumes:
            self.ask("volume", "rm", *(f"{_NAME}_{volume}" for volume in volumes))

    def close(self) -> None:
        """Remove everything, volumes too."""
        self.compose("down", "--timeout", "40", "--volumes")

    def _call(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            command,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_STEP_SECONDS,
            check=False,
        )
        shown = re.sub(r"^.*systemd.*\n", "", done.stderr, flags=re.MULTILINE)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{shown}"
        return done.stdout
