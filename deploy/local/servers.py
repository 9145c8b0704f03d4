"""Postgres, Redis and S3 together, on one home: for the local stack and for tests."""

import threading
from pathlib import Path
from typing import Self

from deploy.local.home import Home
from deploy.local.postgres_server import PostgresServer
from deploy.local.process import stop_orphans
from deploy.local.redis_server import RedisServer
from deploy.local.s3_server import BUCKET, REGION, S3Server
from deploy.local.service import Server

_DEFAULT_PORTS = {"postgres": 15432, "redis": 16379, "s3": 19000}


class EmbeddedServers:
    """The three servers of one home.

    As a context manager it starts them and stops them; each can be stopped, killed, started and
    restarted alone in between (``servers.postgres.kill()``), and comes back on the same port with
    the same data.
    """

    s3_bucket = BUCKET
    s3_region = REGION

    def __init__(self, home: Path, *, durable: bool = True, default_ports: bool = False) -> None:
        """Opens and locks the home, and chooses the ports; starts nothing yet.

        ``durable=False``: they do not wait for the disk; for data that a power cut may cost.
        ``default_ports``: the documented ports, or those of ``DARKROOM_POSTGRES_PORT``,
        ``DARKROOM_REDIS_PORT`` and ``DARKROOM_S3_PORT``; otherwise any free ones. Ports are
        remembered in the home and used again where they are still free.

        Raises:
            StackError: the home cannot be used, or a port that was asked for is taken.
        """
        self.home = Home(home)
        try:
            # Before the ports: an orphan holds the ones that this home remembers.
            stop_orphans(self.home.records())
            ports: dict[str, int] = {}
            for name, default in _DEFAULT_PORTS.items():
                wanted = default if default_ports else None
                ports[name] = self.home.choose_port(name, wanted, ports.values())
            self.postgres = PostgresServer(self.home, ports["postgres"], durable=durable)
            self.redis = RedisServer(self.home, ports["redis"], durable=durable)
            self.s3 = S3Server(self.home, ports["s3"])
        except BaseException:
            self.home.close()
            raise

    @property
    def all(self) -> list[Server]:
        """The servers in the order in which they start."""
        return [self.postgres, self.redis, self.s3]

    @property
    def database_url(self) -> str:
        """``postgresql://user:password@host:port/name`` of the role that owns the tables."""
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        """``redis://:password@host:port/0``."""
        return self.redis.url

    @property
    def s3_endpoint(self) -> str:
        """``http://host:port``, addressed by path."""
        return self.s3.endpoint

    @property
    def s3_access_key(self) -> str:
        return self.home.secrets.s3_access_key

    @property
    def s3_secret_key(self) -> str:
        return self.home.secrets.s3_secret_key

    def environment(self) -> dict[str, str]:
        """The ``DARKROOM_*`` variables with which `shared.core.settings` finds these servers."""
        return {
            "DARKROOM_ENVIRONMENT": "local",
            "DARKROOM_DATABASE_URL": self.database_url,
            "DARKROOM_REDIS_URL": self.redis_url,
            "DARKROOM_S3_ENDPOINT": self.s3_endpoint,
            "DARKROOM_S3_BUCKET": self.s3_bucket,
            "DARKROOM_S3_REGION": self.s3_region,
            "DARKROOM_S3_ACCESS_KEY": self.s3_access_key,
            "DARKROOM_S3_SECRET_KEY": self.s3_secret_key,
        }

    def start(self, stop: threading.Event | None = None) -> None:
        """Starts those that do not run; returns when each answers.

        Raises:
            StackError: one cannot start; the others are stopped again.
            StopRequestedError: ``stop`` was set meanwhile; likewise.
        """
        try:
            for server in self.all:
                server.start(stop)
        except BaseException:
            self.stop()
            raise

    def stop(self, seconds: float = 5.0) -> None:
        """Stops all at once, and kills those that take longer than ``seconds``."""
        for server in self.all:
            server.ask_to_stop()
        for server in self.all:
            server.stop(seconds)

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self.home.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.home.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
