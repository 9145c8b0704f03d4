"""The playground in the local stack: one more process, with the API's address and key alone."""

import importlib.util
import os

import httpx2

from deploy.local.applications import Application
from deploy.local.home import Home
from deploy.local.ports import (
    LOOPBACK,
    choose_port,
    demand_port,
    is_free,
    port_from_environment,
)

NAME = "playground"
VARIABLE = "DARKROOM_PLAYGROUND_PORT"
DEFAULT_PORT = 8501


def is_installed() -> bool:
    """Whether this interpreter has the client with its playground extra."""
    return all(importlib.util.find_spec(name) for name in ("darkroom", "streamlit"))


class Playground(Application):
    """The Streamlit server. It holds the stack's API key, so it listens on this machine alone."""

    def __init__(self, api_url: str, api_key: str, home: Home, taken: set[int]) -> None:
        """Chooses the port: that of ``DARKROOM_PLAYGROUND_PORT``, the default, or any free one.

        Raises:
            PortTakenError: the port that was asked for is taken.
        """
        port = _choose(home, taken)
        self.url = self.where = f"http://{LOOPBACK}:{port}"
        # Not the servers' secrets, also where the shell has them: it is a client like any other.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("DARKROOM_") or name.startswith("DARKROOM_PLAYGROUND_")
        } | {"DARKROOM_URL": api_url, "DARKROOM_API_KEY": api_key}
        arguments = ["-m", "darkroom.playground", f"--port={port}"]
        super().__init__(NAME, arguments, home=home, environment=environment)

    def answers(self) -> bool:
        """Whether Streamlit says that it is well."""
        try:
            answer = httpx2.get(f"{self.url}/_stcore/health", timeout=5, trust_env=False)
        except httpx2.TransportError:
            return False
        return answer.status_code == 200


def _choose(home: Home, taken: set[int]) -> int:
    demanded = port_from_environment(VARIABLE)
    if demanded is not None:
        return demand_port(demanded, variable=VARIABLE)
    candidates = (home.remembered_port(NAME), DEFAULT_PORT)
    free = [port for port in candidates if port and port not in taken and is_free(port)]
    port = free[0] if free else choose_port(taken)
    home.remember_port(NAME, port)
    return port
