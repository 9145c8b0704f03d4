"""The data folder of one local stack: its lock, secrets, ports, logs and servers' folders."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from deploy.local.certificate import make_certificate
from deploy.local.host import (
    ForeignFolderError,
    HomeInUseError,
    StackError,
    choose_port,
    demand_port,
    is_free,
    port_from_environment,
)
from shared.core.keys import new_key

# The layout of a home; a newer Darkroom that changes it raises this number and converts.
FORMAT = 1
# A new Postgres folder takes 40 MB and its write-ahead log up to 1 GB more under load.
MINIMUM_FREE_BYTES = 512 * 1024 * 1024
_KEPT_LOGS = 3


@dataclass(frozen=True)
class Secrets:
    """Passwords made once per home; nothing in the stack has a default password."""

    postgres_superuser: str
    postgres: str
    redis: str
    s3_access_key: str
    s3_secret_key: str
    api_key: str
    """The stack's own key: this computer's user has every scope."""

    @classmethod
    def generate(cls) -> Self:
        """New random secrets of 192 bits; letters and digits, so that URLs need no quoting."""
        return cls(
            postgres_superuser=secrets.token_hex(24),
            postgres=secrets.token_hex(24),
            redis=secrets.token_hex(24),
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_hex(24),
            api_key=new_key().key,
        )


class Home:
    """An exclusively locked data folder. Use as a context manager, or call `close`."""

    def __init__(self, path: Path) -> None:
        """Opens the folder, and makes it where there is none.

        Raises:
            HomeInUseError: another stack runs on it.
            StackError: no space, no permission, or a newer format.
        """
        self.path = path.expanduser().absolute()
        try:
            _make_folder(self.path, 0o711 if os.geteuid() == 0 else 0o700)
            _require_space(self.path)
            self._lock = _lock(self.path / "lock")
        except OSError as error:
            raise StackError(f"cannot use {self.path} as data folder: {error.strerror}") from error
        try:
            self._check_format()
            self.secrets = self._load_secrets()
            for folder in (self.logs, self._run):
                _make_folder(folder, 0o700)
            self._rotate_logs()
        except BaseException:
            self.close()
            raise

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def _run(self) -> Path:
        return self.path / "run"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def record(self, name: str) -> Path:
        """The file that holds the identity of a running child."""
        return self._run / f"{name}.json"

    def records(self) -> list[Path]:
        """The children that an earlier start has left on record."""
        return sorted(self._run.glob("*.json"))

    def choose_port(self, name: str, default: int | None, taken: Container[int]) -> int:
        """A part's port: the one that ``DARKROOM_<NAME>_PORT`` asks for, its last, or the default.

        Where none of these is free, any other one. It is kept, so that addresses survive a restart.
        Without a ``default`` nothing is asked for.

        Raises:
            PortTakenError: the port that was asked for is taken.
        """
        variable = f"DARKROOM_{name.upper()}_PORT"
        port = port_from_environment(variable) if default is not None else None
        if port is not None:
            demand_port(port, variable=variable)
        else:
            wanted = (self._ports().get(name), default)
            free = (each for each in wanted if isinstance(each, int) and each not in taken)
            port = next(filter(is_free, free), None) or choose_port(taken)
        self._write("ports.json", {**self._ports(), name: port})
        return port

    def certificate(self) -> tuple[Path, Path]:
        """The files of the development certificate: its key, and the certificate with its root."""
        files = self.path / "signing-key.pem", self.path / "signing-certificate.pem"
        if not all(file.exists() for file in files):
            for file, text in zip(files, make_certificate(), strict=True):
                write_private(file, text)
        return files

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ports(self) -> dict[str, object]:
        try:
            ports = json.loads((self.path / "ports.json").read_text())
        except (OSError, ValueError):
            return {}  # new, or lost: every port can be chosen again
        return ports if isinstance(ports, dict) else {}

    def _check_format(self) -> None:
        stamp = self.path / "home.json"
        if not stamp.exists():
            self._write("home.json", {"format": FORMAT})
            return
        try:
            version = int(json.loads(stamp.read_text())["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(f"{stamp} is damaged; expected {{'format': {FORMAT}}}") from error
        if version > FORMAT:
            raise StackError(
                f"{self.path} was made by a newer Darkroom (format {version}, this one knows "
                f"{FORMAT}); update, or choose another DARKROOM_HOME"
            )

    def _load_secrets(self) -> Secrets:
        file = self.path / "secrets.json"
        if not file.exists():
            generated = Secrets.generate()
            self._write("secrets.json", asdict(generated))
            return generated
        try:
            return Secrets(**json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise StackError(f"{file} is damaged; the data cannot be opened without it") from error

    def _rotate_logs(self) -> None:
        for log in sorted(self.logs.glob("*.log")):
            for number in range(_KEPT_LOGS - 1, 0, -1):
                older = log.with_name(f"{log.name}.{number}")
                if older.exists():
                    older.replace(log.with_name(f"{log.name}.{number + 1}"))
            log.replace(log.with_name(f"{log.name}.1"))

    def _write(self, name: str, value: object) -> None:
        write_private(self.path / name, json.dumps(value, indent=2) + "\n")


class DataFolder:
    """A server's own folder, which is whole, half made by us, or not ours.

    ``state.json`` says ``begun`` before the first file is made and ``complete`` after the last, so
    an interruption in between is recognised and the folder made again; what Darkroom did not begin
    is never touched.
    """

    def __init__(self, path: Path, server: str) -> None:
        """``server`` names who wrote the data, with the version on which its format depends."""
        self.path = path
        self.data = path / "data"
        self._server = server
        self._state = path / "state.json"

    def prepare(self, make: Callable[[Path], None]) -> bool:
        """Makes the folder with ``make(data)`` where it is not there whole; True if it was made.

        Raises:
            ForeignFolderError: it holds files that are not ours.
            StackError: it was made by another version of the server, or its data are gone.
        """
        state = self._read_state()
        if state is None and self.path.exists() and any(self.path.iterdir()):
            raise ForeignFolderError(
                f"{self.path} holds files that Darkroom did not make; move them away, or choose "
                "another DARKROOM_HOME"
            )
        if state is not None and state.get("state") == "complete":
            self._check(state)
            return False
        _make_folder(self.path, 0o711 if os.geteuid() == 0 else 0o700)
        self._write_state("begun")
        if self.data.exists():
            shutil.rmtree(self.data)
        make(self.data)
        self._write_state("complete")
        return True

    def _check(self, state: dict[str, object]) -> None:
        if state.get("server") != self._server:
            raise StackError(
                f"{self.path} was written by {state.get('server')}, and this is {self._server}; "
                "install the earlier version, or choose another DARKROOM_HOME"
            )
        if not self.data.is_dir():
            raise StackError(
                f"{self.data} is gone; put it back, or remove {self.path} to start empty"
            )

    def _read_state(self) -> dict[str, object] | None:
        try:
            state = json.loads(self._state.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StackError(f"{self._state} is damaged; nothing was touched") from error
        return state if isinstance(state, dict) else None

    def _write_state(self, state: str) -> None:
        text = json.dumps({"state": state, "server": self._server}) + "\n"
        write_private(self._state, text)


def write_private(path: Path, text: str) -> Path:
    """Writes a file that only its owner can read, all of it or nothing, and makes it durable."""
    half = path.with_name(f".{path.name}.half")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)
    return path


def _make_folder(path: Path, mode: int) -> None:
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)  # an existing folder keeps the mode its owner gave it


def _require_space(path: Path) -> None:
    free = shutil.disk_usage(path).free
    if free < MINIMUM_FREE_BYTES:
        raise StackError(
            f"{path} has {free // 2**20} MiB of disk space left and the stack needs at least "
            f"{MINIMUM_FREE_BYTES // 2**20} MiB; make room, or choose another DARKROOM_HOME"
        )


def _lock(path: Path) -> IO[str]:
    # The kernel lets go of it when the process ends, however it ends.
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = file.read().strip() or "unknown"
        file.close()
        raise HomeInUseError(
            f"{path.parent} is in use by another stack (process {holder}); stop that one, or "
            "choose another folder with DARKROOM_HOME=<folder>"
        ) from error
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
