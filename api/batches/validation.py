"""Check a whole file before anything of it is kept: its lines become rows in a temporary file.

The work is done in threads, a thousand lines at a time, so that the event loop goes on answering.
"""

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import BinaryIO, cast
from uuid import UUID

from api.batches.copying import RowWriter
from api.batches.errors import FileRefused, LineError, LineRefused
from api.batches.lines import LineChecker, PlannedJob
from api.batches.reading import MAX_LINES, Line
from api.batches.report import Report
from api.deps import Resources
from api.principal import Principal
from api.problems import FieldError
from shared.batches import statements
from shared.gallery.models import Image, Upload
from shared.ids import MalformedId, from_wire, new_id, to_wire

_AT_ONCE = 1000
_IN_MEMORY = 1024 * 1024
"""Bytes of rows that stay in memory; a larger batch goes to disk."""

StartImages = Mapping[str, dict[str, str] | None]
"""`init_image` reference -> the column of a job's row; None: it is not this tenant's."""


@dataclass
class Validated:
    """A file that was read to its end, or to where it could not be read on."""

    batch_id: UUID
    now: datetime
    """The database's time from which the lines' deadlines count."""
    rows: BinaryIO
    """The jobs, in COPY's text format."""
    report: Report = field(default_factory=Report)
    is_refused: bool = False
    """The file as a whole is at fault, whatever `on_error` says."""
    lines: int = 0
    invalid_lines: int = 0
    jobs: int = 0
    images: int = 0
    cost: int = 0
    largest: int = 0
    """Pixels of the largest picture."""
    models: set[str] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)

    def refuse_line(
        self, number: int, custom_id: str | None, errors: tuple[FieldError, ...]
    ) -> None:
        """A line that is not accepted."""
        self.invalid_lines += 1
        for error in errors:
            self.report.add(LineError(number, custom_id, error.pointer, error.code, error.message))

    def refuse_file(self, code: str, message: str, line: int | None = None) -> None:
        """Nothing is accepted."""
        self.is_refused = True
        self.report.add(LineError(line, None, None, code, message))

    def makes_a_batch(self, on_error: str) -> bool:
        """Whether the file is accepted under this rule about bad lines."""
        if self.is_refused or not self.jobs:
            return False
        return on_error == "skip" or not self.report.count

    def close(self) -> None:
        """Remove the rows."""
        self.rows.close()


async def validate(
    resources: Resources, principal: Principal, lines: Iterator[Line], checker: LineChecker
) -> Validated:
    """Read and check all lines.

    Raises:
        Problem: 503, the database is away.
    """
    async with resources.tenant_transaction(principal) as session:
        now = (await session.scalars(statements.read_clock())).one()
    spool = cast("BinaryIO", tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
    found = Validated(new_id(), now, spool)
    writer = RowWriter(
        found.rows,
        batch_id=found.batch_id,
        tenant_id=principal.tenant_id,
        api_key_id=principal.key_id,
        max_attempts=resources.settings.max_attempts,
        now=now,
    )
    images: dict[str, dict[str, str] | None] = {}
    try:
        is_more = True
        while is_more:
            is_more, planned = await asyncio.to_thread(_check_some, lines, checker, found)
            wanted = {job.init_image for jobs in planned for job in jobs if job.init_image}
            images.update(await _find_images(resources, principal, wanted - images.keys()))
            await asyncio.to_thread(_write_some, planned, images, writer, found)
        if not found.lines and not found.report.count:
            found.refuse_file("empty", "There is no line in it.")
    except BaseException:
        found.close()
        raise
    return found


def _check_some(
    lines: Iterator[Line], checker: LineChecker, found: Validated
) -> tuple[bool, list[list[PlannedJob]]]:
    """The next lines, checked; whether there may be more."""
    planned: list[list[PlannedJob]] = []
    taken = 0
    try:
        for line in islice(lines, _AT_ONCE):
            taken += 1
            found.lines += 1
            if found.lines > MAX_LINES:
                message = f"A batch has {MAX_LINES} lines at most."
                found.refuse_file("too_many_lines", message, line.number)
                return False, planned
            try:
                planned.append(checker.check(line))
            except LineRefused as refusal:
                found.refuse_line(line.number, _name_of(line), refusal.errors)
    except FileRefused as refusal:
        found.refuse_file(refusal.code, refusal.message, refusal.line)
        return False, planned
    return taken == _AT_ONCE, planned


def _name_of(line: Line) -> str | None:
    name = line.fields.get("custom_id") if line.fields else None
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 64 else None


def _write_some(
    planned: list[list[PlannedJob]], images: StartImages, writer: RowWriter, found: Validated
) -> None:
    for jobs in planned:
        missing = next((j for j in jobs if j.init_image and images[j.init_image] is None), None)
        if missing is not None:
            message = "There is no upload or image with this id."
            error = FieldError(pointer="/init_image", code="init_image_not_found", message=message)
            found.refuse_line(missing.line, missing.custom_id, (error,))
            continue
        for job in jobs:
            writer.write(job, images[job.init_image] if job.init_image else None)
            plan = job.plan
            found.jobs += 1
            found.images += len(plan.seeds)
            found.cost += plan.cost
            found.largest = max(found.largest, plan.width * plan.height)
            found.models.add(plan.model)
            found.sessions.add(plan.session_id)


async def _find_images(
    resources: Resources, principal: Principal, references: set[str]
) -> dict[str, dict[str, str] | None]:
    """The pictures behind `upl_…` and `img_…` references, as far as they are this tenant's."""
    found: dict[str, dict[str, str] | None] = dict.fromkeys(references)
    if not references:
        return found
    async with resources.tenant_transaction(principal) as session:
        for prefix, table in (("upl", Upload), ("img", Image)):
            ids = [row_id for ref in references if (row_id := _parse(prefix, ref)) is not None]
            statement = statements.list_start_images(principal.tenant_id, ids, table)
            for row_id, s3_key, sha256 in (await session.execute(statement)).all() if ids else ():
                ref = to_wire("upl" if prefix == "upl" else "img", row_id)
                found[ref] = {"ref": ref, "s3_key": s3_key, "sha256": sha256}
    return found


def _parse(prefix: str, reference: str) -> UUID | None:
    try:
        return from_wire("upl" if prefix == "upl" else "img", reference)
    except MalformedId:
        return None
