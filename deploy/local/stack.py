"""The supervisor of `make run`: starts all parts in order, keeps them alive, stops them in time."""

import contextlib
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.text import Text

from deploy.local.applications import (
    API,
    Api,
    Application,
    Playground,
    application_environment,
    playground_is_installed,
)
from deploy.local.home import write_private
from deploy.local.host import (
    LOOPBACK,
    ServerFailedError,
    StackError,
    StopRequestedError,
    choose_port,
    demand_port,
    wait_until,
)
from deploy.local.process import ChildProcess, describe_failure
from deploy.local.servers import EmbeddedServers
from deploy.local.service import Restarter, Service
from deploy.local.workers import CAN_FORK, Libraries, Worker
from deploy.tenants import register_key

# Together below the 10 s in which the stack promises to be gone.
_WORKER_SECONDS = 6.5
_API_SECONDS = 1.5
_SERVER_SECONDS = 1.5
_MIGRATION_SECONDS = 120.0
# A cold start loads the model and warms it up before the first job runs.
_FIRST_JOB_SECONDS = 300.0
_TICK_SECONDS = 0.2
_POLL_SECONDS = 0.25
_DONE = {"succeeded", "failed", "canceled", "expired"}


class Terminal:
    """Lines for the user. Losing the terminal is not a failure."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True, file=sys.stdout)

    def say(self, message: str, style: str = "") -> None:
        with contextlib.suppress(OSError):
            self._console.print(Text(message, style=style))
            sys.stdout.flush()

    def fail(self, message: str) -> None:
        """Prints what went wrong; the first line is the sentence, the rest is evidence."""
        sentence, _, evidence = message.partition("\n")
        self.say(sentence, "bold red")
        if evidence:
            self.say(evidence, "dim")

    def fact(self, name: str, value: object) -> None:
        """Prints a name and a value, aligned with its neighbours."""
        with contextlib.suppress(OSError):
            self._console.print(Text(f"  {name:<16}", style="dim") + Text(str(value)))
            sys.stdout.flush()

    @contextlib.contextmanager
    def step(self, name: str, detail: object = "") -> Iterator[None]:
        """Prints what was done and how long it took, once it is done.

        In a terminal it shows meanwhile that it is being done.
        """
        began = time.monotonic()
        with self._console.status(name) if self._console.is_terminal else contextlib.nullcontext():
            yield
        self.fact(name, f"{detail!s:<42}{time.monotonic() - began:5.1f} s")


def _checked(answer: httpx2.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if answer.is_success and isinstance(body, dict):
        return body
    problem = body if isinstance(body, dict) else {"detail": answer.text[:200]}
    detail = problem.get("detail") or problem.get("title") or "no reason was given"
    raise StackError(
        f"{answer.request.method} {answer.request.url.path} answered {answer.status_code}: {detail}"
    )


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
            with_playground = port is not None and playground_is_installed()
            port = demand_port(port or choose_port(taken), variable="DARKROOM_PORT")
            self.url = f"http://{LOOPBACK}:{port}"
            if with_playground:
                self.playground = Playground(self.url, self.key, self.home, {*taken, port})
        except BaseException:
            self.home.close()
            raise
        self._environment = application_environment(self.servers.environment(), self.url, self.home)
        self._libraries = Libraries(self.home, self._environment) if CAN_FORK else None
        workers = [
            Worker(role, self.home, self._environment, self._libraries)
            for role in ("cpu", "generate")
        ]
        api = Api(self.url, self.home, self._environment)
        # In order of start. What takes longest is first: workers that have yet to import.
        self._applications = [api, *workers] if self._libraries else [*workers, api]
        if self.playground is not None:
            self._applications.append(self.playground)

    @property
    def services(self) -> list[Service]:
        """Every part that must run, in the order of start."""
        return [*self.servers.all, *self._applications]

    def start(self) -> None:
        """Returns when the API is ready; workers may still be warming up.

        Raises:
            StackError: a part failed; nothing is left running after `close`.
            StopRequestedError: the user wants to stop.
        """
        if self._libraries is not None:
            self._libraries.begin()  # what takes longest, and needs no server
        for server in self.servers.all:
            with self._terminal.step(server.name, f"{LOOPBACK}:{server.port}"):
                server.start(self._stop)
        with self._terminal.step("migrations", "applied"):
            self._migrate()
        register_key(self.servers.database_url, self.key)
        for part in self._applications:
            with self._terminal.step(part.name, part.where):
                part.start(self._stop)
        self._write_environment()

    def generate(self, job: dict[str, Any], image: Path) -> None:
        """Runs one job through the API and saves its first image.

        Raises:
            StackError: it was refused, it failed, took too long, or a part has ended meanwhile.
            StopRequestedError: the user wants to stop.
        """
        with self._client() as client:
            latest = _checked(client.post("/v1/jobs", json=job))
            deadline = time.monotonic() + _FIRST_JOB_SECONDS
            while latest["state"] not in _DONE:
                if time.monotonic() > deadline:
                    raise StackError(
                        f"job {latest['id']} is still {latest['state']} after "
                        f"{_FIRST_JOB_SECONDS:.0f} s"
                    )
                self._require_all_running()
                if self._stop.wait(_POLL_SECONDS):
                    raise StopRequestedError
                latest = _checked(client.get(f"/v1/jobs/{latest['id']}"))
            if latest["state"] != "succeeded":
                reason = (latest.get("error") or {}).get("message", "no reason was given")
                raise StackError(f"job {latest['id']} {latest['state']}: {reason}")
            made = f"/v1/images/{latest['images'][0]['id']}/content"
            answer = client.get(made, follow_redirects=False, params={"proxy": "1"})
        if answer.status_code != 200:
            raise StackError(f"GET {answer.request.url} answered {answer.status_code}")
        image.write_bytes(answer.content)

    def upload(self, image: Path) -> str:
        """Sends an image through the API; returns its upload id."""
        with self._client() as client:
            answer = client.post("/v1/uploads", files={"file": (image.name, image.read_bytes())})
        return str(_checked(answer)["id"])

    def _client(self) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=30,
            trust_env=False,  # this machine needs no proxy
        )

    def watch(self) -> None:
        """Keeps every part alive until a stop is wanted.

        Raises:
            StackError: a part can never start again as things are.
            StopRequestedError: a stop came in the middle of a restart.
        """
        restarters = [Restarter(service) for service in self.services]
        while not self._stop.wait(_TICK_SECONDS):
            for restarter in restarters:
                message = restarter.check(self._stop)
                if message:
                    self._terminal.fail(message)

    def close(self) -> None:
        """Stops workers, then the API, then the servers, within 10 s; unlocks the home."""
        workers = [part for part in self._applications if part.name != API]
        if self._libraries is not None:
            workers.append(self._libraries)
        api = [part for part in self._applications if part.name == API]
        try:
            _stop_together(workers, _WORKER_SECONDS)
            _stop_together(api, _API_SECONDS)
            self.servers.stop(_SERVER_SECONDS)
        finally:
            self.home.close()

    def _migrate(self) -> None:
        upgrade = ["-m", "migrations", "upgrade"]
        program = Application(
            "migrations", upgrade, home=self.home, environment=self._environment
        ).program()
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
        write_private(self.home.path / "env", "\n".join(lines) + "\n")


def _stop_together(parts: list[Application], seconds: float) -> None:
    for part in parts:
        part.ask_to_stop()
    deadline = time.monotonic() + seconds
    for part in parts:
        part.stop(max(0.0, deadline - time.monotonic()))
