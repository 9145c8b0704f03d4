"""The supervisor of `make run`: starts all parts in order, keeps them alive, stops them in time."""

import shlex
import threading
import time
from pathlib import Path
from typing import Any

from deploy.local.api_client import ApiClient
from deploy.local.applications import (
    API,
    Application,
    application_environment,
    applications,
    migration,
)
from deploy.local.errors import ServerFailedError, StackError
from deploy.local.keeper import Keeper
from deploy.local.playground import Playground, is_installed
from deploy.local.ports import LOOPBACK, choose_port, demand_port
from deploy.local.process import ChildProcess, describe_failure
from deploy.local.servers import EmbeddedServers
from deploy.local.service import Service
from deploy.local.terminal import Terminal
from deploy.local.waiting import wait_until
from deploy.tenants import register_key

# Together below the 10 s in which the stack promises to be gone.
_WORKER_SECONDS = 6.5
_API_SECONDS = 1.5
_SERVER_SECONDS = 1.5
_MIGRATION_SECONDS = 120.0
# A cold start loads the model and warms it up before the first job runs.
_FIRST_JOB_SECONDS = 300.0
_TICK_SECONDS = 0.2


class LocalStack:
    """Everything of one home. Call `start`, then `watch` until a stop is wanted, then `close`."""

    def __init__(
        self,
        home: Path,
        *,
        port: int | None,
        terminal: Terminal,
        stop: threading.Event,
    ) -> None:
        """Locks the home and ends what a killed predecessor left; starts nothing yet.

        ``port`` is the API's; None: any free one, and so for every other part, and no playground.

        Raises:
            StackError: the home cannot be used, or a port that was asked for is taken.
        """
        self._terminal = terminal
        self._stop = stop
        self.servers = EmbeddedServers(home, default_ports=port is not None)
        self.home = self.servers.home
        self.key = self.home.secrets.api_key
        self.playground: Playground | None = None
        try:
            # After the orphans are gone, since one of them may be our own API.
            taken = {server.port for server in self.servers.all}
            with_playground = port is not None and is_installed()
            port = demand_port(port or choose_port(taken), variable="DARKROOM_PORT")
            self.url = f"http://{LOOPBACK}:{port}"
            if with_playground:
                self.playground = Playground(self.url, self.key, self.home, {*taken, port})
        except BaseException:
            self.home.close()
            raise
        self._environment = application_environment(self.servers.environment(), self.url)
        self._applications = applications(self.url, self.home, self._environment)
        if self.playground is not None:
            self._applications.insert(0, self.playground)

    @property
    def services(self) -> list[Service]:
        """Every part, in the order of start."""
        return [*self.servers.all, *self._applications]

    def start(self) -> None:
        """Returns when the API is ready; workers may still be warming up.

        Raises:
            StackError: a part failed; nothing is left running after `close`.
            StopRequestedError: the user wants to stop.
        """
        for server in self.servers.all:
            with self._terminal.step(server.name, f"{LOOPBACK}:{server.port}"):
                server.start(self._stop)
        with self._terminal.step("migrations", "applied"):
            self._migrate()
        register_key(self.servers.database_url, self.key)
        # Workers first: loading the model takes longest, and the API needs none of them.
        for part in reversed(self._applications):
            with self._terminal.step(part.name, part.where):
                part.start(self._stop)
        self._write_environment()

    def generate(self, job: dict[str, Any], picture: Path) -> dict[str, Any]:
        """Runs one job through the API and saves its first picture; returns the job."""
        client = ApiClient(self.url, self.key, self._stop)
        try:
            done = client.generate(
                job, seconds=_FIRST_JOB_SECONDS, meanwhile=self._require_all_running
            )
            client.save(done, picture)
        finally:
            client.close()
        return done

    def upload(self, picture: Path) -> str:
        """Sends a picture through the API; returns its upload id."""
        client = ApiClient(self.url, self.key, self._stop)
        try:
            return client.upload(picture)
        finally:
            client.close()

    def watch(self) -> None:
        """Keeps every part alive until a stop is wanted.

        Raises:
            StackError: a part can never start again as things are.
            StopRequestedError: a stop came in the middle of a restart.
        """
        keepers = [Keeper(service) for service in self.services]
        while not self._stop.wait(_TICK_SECONDS):
            for keeper in keepers:
                message = keeper.check(self._stop)
                if message:
                    self._terminal.fail(message)

    def close(self) -> None:
        """Stops workers, then the API, then the servers, within 10 s; unlocks the home."""
        workers = [part for part in self._applications if part.name != API]
        api = [part for part in self._applications if part.name == API]
        try:
            _stop_together(workers, _WORKER_SECONDS)
            _stop_together(api, _API_SECONDS)
            self.servers.stop(_SERVER_SECONDS)
        finally:
            self.home.close()

    def _migrate(self) -> None:
        program = migration(self.home, self._environment)
        child = ChildProcess(program)
        try:
            wait_until(
                lambda: not child.running,
                what="the migration",
                seconds=_MIGRATION_SECONDS,
                stop=self._stop,
            )
        finally:
            child.stop(_SERVER_SECONDS)
        if child.exit_code:
            raise ServerFailedError(describe_failure(program, child.exit_code))

    def _require_all_running(self) -> None:
        for service in self.services:
            failure = service.failure()
            if failure is not None:
                raise StackError(failure)

    def _write_environment(self) -> None:
        values = {
            "DARKROOM_URL": self.url,
            "DARKROOM_API_KEY": self.key,
            **self.servers.environment(),
        }
        lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
        self.home.write_private("env", "\n".join(lines) + "\n")


def _stop_together(parts: list[Application], seconds: float) -> None:
    for part in parts:
        part.ask_to_stop()
    deadline = time.monotonic() + seconds
    for part in parts:
        part.stop(max(0.0, deadline - time.monotonic()))
