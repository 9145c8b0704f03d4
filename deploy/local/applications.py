"""Darkroom's own processes in the local stack, but for the workers (see `workers`)."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx2

from deploy.local.home import Home
from deploy.local.host import LOOPBACK
from deploy.local.process import Program
from deploy.local.service import Service

PROJECT = Path(__file__).resolve().parents[2]
API = "api"
PLAYGROUND = "playground"
_PLAYGROUND_PORT = 8501


class Application(Service):
    """A Python process of the project, with its settings in the environment."""

    start_seconds = 60.0  # a cold disk reads Python packages slowly
    where = "started"
    """What its line says once it runs: its address, if it has one."""

    def __init__(
        self, name: str, arguments: list[str], *, home: Home, environment: Mapping[str, str]
    ) -> None:
        """``arguments`` follow ``python``. Starts nothing yet."""
        self.name = name
        self._arguments = arguments
        self._home = home
        self._environment = environment

    def program(self) -> Program:
        return Program(
            name=self.name,
            command=[sys.executable, *self._arguments],
            environment=self._environment,
            log=self._home.log(self.name),
            record=self._home.record(self.name),
            cwd=PROJECT,
        )

    def answers(self) -> bool:
        """A worker has no address; what shows that it works is a finished job."""
        return True


class Api(Application):
    """The HTTP API, which counts as started when it and all it depends on are ready."""

    def __init__(self, url: str, home: Home, environment: Mapping[str, str]) -> None:
        address = httpx2.URL(url)
        arguments = [
            *("-m", "uvicorn", "api.app:create_app", "--factory"),
            "--http=api.core.connection:Connection",
            f"--host={address.host}",
            f"--port={address.port or 80}",
            "--timeout-keep-alive=75",  # longer than clients keep a connection: no race to close
            "--timeout-graceful-shutdown=1",  # an open event stream would hold it for ever
        ]
        super().__init__(API, arguments, home=home, environment=environment)
        self.where = self._url = url

    def answers(self) -> bool:
        """Whether ``/readyz`` says that Postgres, Redis and S3 are reachable."""
        return _is_ok(f"{self._url}/readyz")


def playground_is_installed() -> bool:
    """Whether this interpreter has the client with its playground extra."""
    return all(importlib.util.find_spec(name) for name in ("darkroom", "streamlit"))


class Playground(Application):
    """The Streamlit server. It holds the stack's API key, so it listens on this machine alone."""

    def __init__(self, api_url: str, api_key: str, home: Home, taken: set[int]) -> None:
        """Chooses the port: that of ``DARKROOM_PLAYGROUND_PORT``, the default, or any free one.

        Raises:
            PortTakenError: the port that was asked for is taken.
        """
        port = home.choose_port(PLAYGROUND, _PLAYGROUND_PORT, taken)
        self.url = self.where = f"http://{LOOPBACK}:{port}"
        # Not the servers' secrets, also where the shell has them: it is a client like any other.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("DARKROOM_") or name.startswith("DARKROOM_PLAYGROUND_")
        } | {"DARKROOM_URL": api_url, "DARKROOM_API_KEY": api_key}
        arguments = ["-m", "darkroom.playground", f"--port={port}"]
        super().__init__(PLAYGROUND, arguments, home=home, environment=environment)

    def answers(self) -> bool:
        return _is_ok(f"{self.url}/_stcore/health")


def _is_ok(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def application_environment(servers: Mapping[str, str], url: str, home: Home) -> dict[str, str]:
    """The user's environment with the stack's own settings over it."""
    own = os.environ.keys() & {
        f"DARKROOM_PROVENANCE_{name}" for name in ("CERTIFICATE_FILE", "KEY_FILE", "SIGNER_URL")
    }
    return {
        **os.environ,
        **({} if own else _signing(home)),
        # Overridable by the user's own variables.
        "DARKROOM_LOG_FORMAT": os.environ.get("DARKROOM_LOG_FORMAT", "console"),
        "DARKROOM_MODELS_FILE": os.environ.get(
            "DARKROOM_MODELS_FILE", str(PROJECT / "deploy" / "models.toml")
        ),
        # Not overridable: two stacks would mix.
        **servers,
        "DARKROOM_PUBLIC_URL": url,
        "DARKROOM_SHUTDOWN_GRACE": "PT3S",  # the whole stack has 10 s, and Celery needs some
        "PYTHONUNBUFFERED": "1",
    }


def _signing(home: Home) -> dict[str, str]:
    key, certificate = home.certificate()
    return {
        "DARKROOM_PROVENANCE_KEY_FILE": str(key),
        "DARKROOM_PROVENANCE_CERTIFICATE_FILE": str(certificate),
    }
