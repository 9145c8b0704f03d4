"""The whole stack as a user runs it, in a folder of its own: `darkroom-server up`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil

from tests.processes import PROJECT, free_port, wait_until

START_SECONDS = 120.0
STOP_SECONDS = 10.0
"""What the stack promises; it kills what takes longer."""


_OTHER_SERVERS = {"DARKROOM_POSTGRES_BIN", "DARKROOM_REDIS_SERVER"}
"""Those that a run of the tests was told to try."""


class Stack:
    """`darkroom-server …` in a folder of its own, with its output in a file."""

    def __init__(self, home: Path, output: Path, *arguments: str, **variables: str) -> None:
        self.home = home
        self._output = output
        self._variables = variables
        # Not the settings of a developer's shell or of this run's other servers.
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("DARKROOM_") or name in _OTHER_SERVERS
        }
        environment = {**clean, "DARKROOM_HOME": str(home), **variables}
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "darkroom_server", *arguments],
                cwd=PROJECT,
                env=environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )

    @property
    def port(self) -> int:
        """The API's, where it was named."""
        return int(self._variables["DARKROOM_PORT"])

    @property
    def playground(self) -> str:
        """Its URL, where its port was named."""
        return f"http://127.0.0.1:{self._variables['DARKROOM_PLAYGROUND_PORT']}"

    @property
    def said(self) -> str:
        """Everything so far."""
        return self._output.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until it says something.

        Raises:
            AssertionError: it ended, or did not within two minutes.
        """

        def said_or_ended() -> bool:
            return text in self.said or self.process.poll() is not None

        wait_until(said_or_ended, START_SECONDS, what=f"{text!r} of the stack")
        assert text in self.said, self.said

    def children(self) -> dict[str, psutil.Process]:
        """The running children by name."""
        found = {}
        for record in (self.home / "run").glob("*.json"):
            found[record.stem] = psutil.Process(json.loads(record.read_text())["pid"])
        return found

    def settings(self) -> dict[str, str]:
        """What a shell knows after it has read the file `env`."""
        shell = subprocess.run(
            ["sh", "-c", '. "$1" && env', "sh", str(self.home / "env")],
            check=True,
            capture_output=True,
            text=True,
        )
        lines = [line.partition("=") for line in shell.stdout.splitlines()]
        return {name: value for name, _, value in lines if name.startswith("DARKROOM_")}

    def api(self) -> httpx2.Client:
        """A client with the stack's own key."""
        known = self.settings()
        return httpx2.Client(
            base_url=known["DARKROOM_URL"],
            headers={"Authorization": f"Bearer {known['DARKROOM_API_KEY']}"},
            timeout=30,
        )

    def end(self) -> None:
        """Stop it as a user would, or kill it."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(2 * STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_ports() -> dict[str, str]:
    """Other ports than the defaults, which a developer's own stack may want meanwhile."""
    parts = ("", "PLAYGROUND_", "POSTGRES_", "REDIS_", "S3_")
    return {f"DARKROOM_{part}PORT": str(free_port()) for part in parts}
