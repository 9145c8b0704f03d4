"""The data of commit 1646d20, an earlier version, put into servers of today."""

import json
import lzma
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

import psycopg

from shared.core.ids import decode_id, encode_id, new_id

FOLDER = Path(__file__).parent / "fixtures" / "1646d20"
IMAGE = FOLDER / "image.png"
"""With a receipt of version 1."""
MODELS = FOLDER / "models.toml"
"""A catalogue with every key of that version."""
REVISION = "0010"
FACTS: dict[str, Any] = json.loads((FOLDER / "facts.json").read_text("utf-8"))
"""API keys by name, and ids of jobs, batches and an image worth a look."""


def restore_database(url: str) -> None:
    """Fill an empty database, which has the extension; the tables' owner is who connects."""
    dump = lzma.decompress((FOLDER / "database.sql.xz").read_bytes())
    dump = dump.replace(b"SET transaction_timeout = 0;\n", b"")  # which came with Postgres 17
    with psycopg.connect(url.replace("+psycopg", "", 1)) as connection:
        connection.execute(dump)


def unpack_home(home: Path) -> None:
    """Make a home as that version left it, but for Postgres' folder."""
    home.mkdir(mode=0o711)
    with lzma.open(FOLDER / "home.tar.xz") as file, tarfile.open(fileobj=file) as archive:
        archive.extractall(home, filter="data")


_SUBMIT = """
INSERT INTO jobs (id, tenant_id, api_key_id, session_id, kind, model, lane, prompt, seeds, width,
    height, steps, guidance_scale, scheduler, output_format, metadata, cost, state, max_attempts)
SELECT %s, tenant_id, api_key_id, session_id, kind, model, lane, prompt, seeds, width,
    height, steps, guidance_scale, scheduler, output_format, metadata, cost, 'queued', max_attempts
FROM jobs WHERE id = %s
"""


@contextmanager
def submitting(url: str) -> Iterator[list[str]]:
    """While the block runs, that version's API inserts jobs; gives the ids of those accepted.

    A column that has another name by then ends it: that version answers 500 from then on.
    """
    accepted: list[str] = []
    stop = Event()
    like: UUID = decode_id("job", FACTS["idempotent"])

    def submit() -> None:
        with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as connection:
            while not stop.is_set():
                job = new_id()
                try:
                    connection.execute(_SUBMIT, (job, like))
                except psycopg.errors.UndefinedColumn:
                    return
                accepted.append(encode_id("job", job))
                stop.wait(0.01)

    thread = Thread(target=submit)
    thread.start()
    try:
        yield accepted
    finally:
        stop.set()
        thread.join()
