"""The services of deploy/compose.yaml as processes of this machine: same commands, same variables.

What differs from containers is what must: hosts and ports, and the folders /run/secrets, /data and
/srv/s3. Postgres is the embedded one, prepared by the script that its container runs; Redis and S3
are started by their containers' own scripts. `pydantic-settings` reads secrets from /run/secrets;
here the same values come as the variables of the same names.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploy.docker.healthy import is_healthy
from deploy.docker.secrets import make_secrets
from deploy.local.servers import EmbeddedServers
from tests.conftest import MODELS
from tests.processes import PROJECT, Process, free_port, wait_until
from tests.unit.deploy.compose_file import load_compose, secrets_of
from tests.unit.deploy.dockerfiles import DEPLOY, command_of

OWNER = "composed"
_DOCKERFILES = {"darkroom-api": "Dockerfile.api", "darkroom-worker": "Dockerfile.worker"}
_WORKERS = ("cpu-worker", "generate-worker-cpu")


class ComposedStack:
    """A context manager: at its end nothing runs."""

    def __init__(self, servers: EmbeddedServers, folder: Path) -> None:
        self._servers = servers
        self._folder = folder
        self._stack = ExitStack()
        self.secrets = folder / "secrets"
        make_secrets(self.secrets)
        self._ports = {
            "postgres:5432": servers.postgres.port,
            "redis:6379": free_port(),
            "s3:9000": free_port(),
            "api:8000": free_port(),
            **{f"{worker}:9464": free_port() for worker in _WORKERS},
        }
        self.url = f"http://127.0.0.1:{self._ports['api:8000']}"
        self._services: dict[str, dict[str, Any]] = load_compose(
            {
                "DARKROOM_PUBLIC_URL": self.url,
                "DARKROOM_S3_PUBLIC_ENDPOINT": f"http://127.0.0.1:{self._ports['s3:9000']}",
                "DARKROOM_MODELS_FILE": str(MODELS),  # a simulated GPU in place of a checkpoint
            }
        )["services"]

    def __enter__(self) -> "ComposedStack":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._servers.postgres.drop_database(OWNER)

    @property
    def api_key(self) -> str:
        """The first key, as the operator reads it."""
        return (self.secrets / "darkroom_api_key").read_text("utf-8").strip()

    def prepare_database(self) -> None:
        """What `10-darkroom.sh` does in a new data folder."""
        programs = Path(self._servers.postgres.program().command[0]).parent
        subprocess.run(
            [
                *(str(programs / "psql"), "--quiet", "--no-psqlrc"),
                *("--set", f"owner={OWNER}", "--set", f"database={OWNER}"),
                *("--file", str(DEPLOY / "docker" / "postgres" / "prepare.sql")),
            ],
            env={
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self._servers.postgres.port),
                "PGUSER": "postgres",
                "PGDATABASE": "postgres",
                "PGPASSWORD": self._servers.home.secrets.postgres_superuser,
                "DARKROOM_OWNER_PASSWORD": self._secret("database_password"),
            },
            check=True,
            timeout=30,
        )

    def start_servers(self) -> None:
        """Redis and S3, by their containers' scripts."""
        for name, server, data, port in (
            ("redis", self._servers.redis, "/data", "6379"),
            ("s3", self._servers.s3, "/srv/s3", "9000"),
        ):
            program = Path(server.program().command[0])
            folder = self._folder / name
            folder.mkdir()
            text = (DEPLOY / "docker" / f"{name}.sh").read_text("utf-8")
            text = text.replace("/tmp/rclone", f"{folder}-cache")
            text = text.replace("/run/secrets", str(self.secrets)).replace(data, str(folder))
            text = text.replace(port, str(self._ports[f"{name}:{port}"]))
            script = self._folder / f"{name}.sh"
            script.write_text(text, "utf-8")
            environment = {"PATH": f"{program.parent}:{os.defpath}"}
            started = self._start(name, ["/bin/sh", str(script)], environment)
            address = f"tcp://127.0.0.1:{self._ports[f'{name}:{port}']}"
            wait_until(lambda at=address: is_healthy(at), 30, f"{name}: {started.tail()}")

    def run(self, service: str) -> str:
        """A one-shot service to its end; gives what it printed."""
        done = subprocess.run(
            self.command(service),
            env=self.environment(service),
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{service}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, service: str) -> Process:
        """A service that stays."""
        return self._start(service, self.command(service), self.environment(service))

    def is_healthy(self, service: str) -> bool:
        """What the service's health check says."""
        check: list[str] = self._services[service]["healthcheck"]["test"]
        assert check[:4] == ["CMD", "python", "-m", "deploy.docker.healthy"]
        return is_healthy(*self._with_addresses(check[4:], service))

    def wait_healthy(self, *services: str) -> None:
        """Wait as `depends_on: service_healthy` does."""
        for service in services:
            wait_until(lambda name=service: self.is_healthy(name), 150, f"health of {service}")

    def command(self, service: str) -> list[str]:
        """The image's entry point and the service's command, or the image's own."""
        image = self._services[service]["image"].partition(":")[0]
        dockerfile = DEPLOY / _DOCKERFILES[image]
        own = self._services[service].get("command") or command_of(dockerfile)
        program, *arguments = [*command_of(dockerfile, "ENTRYPOINT"), *own]
        modules = {"python": (), "darkroom-server": ("-m", "darkroom_server")}
        return self._with_addresses([sys.executable, *modules[program], *arguments], service)

    def environment(self, service: str) -> dict[str, str]:
        """The service's variables and secrets, and nothing of this process."""
        described = self._services[service]
        values = {name: str(value) for name, value in described["environment"].items()}
        values |= {"TMPDIR": str(self._folder)} if "TMPDIR" in values else {}
        values |= {
            name.upper(): self._secret(name)
            for name in secrets_of(described)
            if name.startswith("darkroom_") and name != "darkroom_api_key"
        }
        replaced = self._with_addresses(list(values.values()), service)
        named = dict(zip(values, replaced, strict=True))
        if service in _WORKERS:
            named["DARKROOM_METRICS_PORT"] = str(self._ports[f"{service}:9464"])
        return {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **named}

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> Process:
        process = Process({}, [], self._folder / f"{name}.log")
        process._arguments = command
        process._environment = environment
        process.start()
        self._stack.callback(process.stop)
        return process

    def _secret(self, name: str) -> str:
        return (self.secrets / name).read_text("utf-8").strip()

    def _with_addresses(self, values: list[str], service: str) -> list[str]:
        """Containers' addresses and folders become this machine's."""
        replaced = {address: f"127.0.0.1:{port}" for address, port in self._ports.items()}
        replaced |= {"//darkroom:": f"//{OWNER}:", "/run/secrets": str(self.secrets)}
        if service == "api":
            port = self._ports["api:8000"]
            replaced |= {"127.0.0.1:8000": f"127.0.0.1:{port}", "--port=8000": f"--port={port}"}
        if service in _WORKERS:
            replaced["127.0.0.1:9464"] = f"127.0.0.1:{self._ports[f'{service}:9464']}"

        def native(value: str) -> str:
            for there, here in replaced.items():
                value = value.replace(there, here)
            if value.startswith("postgresql://"):
                value = value.removesuffix("/darkroom") + f"/{OWNER}"
            return value

        return [native(value) for value in values]
