"""Check a whole file before anything of it is kept: its lines become rows in a temporary file.

The work is done in threads, some hundred jobs at a time, so that the event loop goes on answering
and no line, whatever it expands to, is ever held whole.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import BinaryIO, cast
from uuid import UUID

from api.batches.lines import LineChecker, PlannedJob, RowWriter
from api.batches.reading import MAX_LINES, Line
from api.batches.report import FileRefused, LineError, LineRefused, Report
from api.context import Resources
from api.core.errors import FieldError
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.jobs.estimates import work_of_plan
from api.jobs.init_images import InitImage
from api.jobs.planning import Plan
from shared.batches import queries
from shared.core.ids import MalformedId, from_wire, new_id, to_wire
from shared.images import queries as image_queries
from shared.images.models import Image, Upload
from shared.jobs.calibration import Prices

_AT_ONCE = 250
"""Lines read, and jobs made of them; of the largest that there can be, so many take 20 MB."""
_IN_MEMORY = 1024 * 1024
"""Bytes of rows that stay in memory; a larger batch goes to disk."""

StartImages = Mapping[str, InitImage | None]
"""`init_image` reference -> the picture; None: it is not this tenant's."""


@dataclass
class Totals:
    """What some lines make."""

    jobs: int = 0
    images: int = 0
    cost: int = 0
    gpu_seconds: float = 0.0
    """As estimated."""
    largest: int = 0
    """Pixels of the largest picture."""
    models: set[str] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)

    def add(self, plan: Plan, gpu_seconds: float) -> None:
        """One more job."""
        self.jobs += 1
        self.images += len(plan.seeds)
        self.cost += plan.cost
        self.gpu_seconds += gpu_seconds
        self.largest = max(self.largest, plan.width * plan.height)
        self.models.add(plan.model)
        self.sessions.add(plan.session_id)

    def merge(self, other: "Totals") -> None:
        """The jobs of more lines."""
        self.jobs += other.jobs
        self.images += other.images
        self.cost += other.cost
        self.gpu_seconds += other.gpu_seconds
        self.largest = max(self.largest, other.largest)
        self.models |= other.models
        self.sessions |= other.sessions


@dataclass
class Validated(Totals):
    """A file that was read to its end, or to where it could not be read on."""

    batch_id: UUID = field(kw_only=True)
    now: datetime = field(kw_only=True)
    """The database's time from which the lines' deadlines count."""
    rows: BinaryIO = field(kw_only=True)
    """The jobs, in COPY's text format."""
    report: Report = field(default_factory=Report)
    is_refused: bool = False
    """The file as a whole is at fault, whatever `on_error` says."""
    lines: int = 0
    invalid_lines: int = 0

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
        now = (await session.scalars(queries.read_clock())).one()
    prices = await resources.estimates.prices()
    spool = cast("BinaryIO", tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
    found = Validated(batch_id=new_id(), now=now, rows=spool)
    reader = _LineReader(lines, checker, found)
    writer = RowWriter(
        found.rows,
        batch_id=found.batch_id,
        tenant_id=principal.tenant_id,
        api_key_id=principal.key_id,
        max_attempts=resources.settings.max_attempts,
        now=now,
    )
    images: dict[str, InitImage | None] = {}
    try:
        while not reader.is_at_end and not found.is_refused:
            parts = await on_thread(reader.read_some)
            wanted = {job.init_image for part in parts for job in part.jobs if job.init_image}
            images.update(await _find_images(resources, principal, wanted - images.keys()))
            await on_thread(_write_some, parts, images, prices, writer, found)
        if not found.lines and not found.report.count:
            found.refuse_file("empty", "There is no line in it.")
    except BaseException:
        found.close()
        raise
    return found


@dataclass
class _OpenLine:
    """A line of which not all jobs were made, or not all were written."""

    line: Line
    jobs: Iterator[PlannedJob]
    totals: Totals = field(default_factory=Totals)
    start: int | None = None
    """Where its rows begin; None: none is written."""
    is_refused: bool = False

    def refuse(
        self, found: Validated, custom_id: str | None, errors: tuple[FieldError, ...]
    ) -> None:
        """Take back what was written of it."""
        self.is_refused = True
        if self.start is not None:
            found.rows.seek(self.start)
            found.rows.truncate()
        found.refuse_line(self.line.number, custom_id, errors)


@dataclass
class _Part:
    """Some jobs of a line, the last of them, or why there are none."""

    line: _OpenLine
    jobs: list[PlannedJob]
    is_last: bool
    refusal: LineRefused | None = None


class _LineReader:
    """Reads and checks the lines of a file, some jobs at a time."""

    def __init__(self, lines: Iterator[Line], checker: LineChecker, found: Validated) -> None:
        self._lines = lines
        self._checker = checker
        self._found = found
        self._open: _OpenLine | None = None
        self.is_at_end = False

    def read_some(self) -> list[_Part]:
        """The next jobs of the file."""
        parts: list[_Part] = []
        left = _AT_ONCE
        try:
            while left > 0 and (line := self._current()) is not None:
                part = self._read(line, left)
                parts.append(part)
                left -= max(1, len(part.jobs))
                if part.is_last:
                    self._open = None
        except FileRefused as refusal:
            self._found.refuse_file(refusal.code, refusal.message, refusal.line)
            self.is_at_end = True
        return parts

    def _current(self) -> _OpenLine | None:
        if self._open is not None and not self._open.is_refused:
            return self._open
        line = next(self._lines, None)
        if line is None:
            self.is_at_end = True
            return None
        self._found.lines += 1
        if self._found.lines > MAX_LINES:
            message = f"A batch has {MAX_LINES} lines at most."
            raise FileRefused("too_many_lines", message, line.number)
        self._open = _OpenLine(line, self._checker.check(line))
        return self._open

    def _read(self, line: _OpenLine, most: int) -> _Part:
        try:
            jobs = list(islice(line.jobs, most))
        except LineRefused as refusal:
            return _Part(line, [], True, refusal)
        except FileRefused as refusal:
            raise FileRefused(refusal.code, refusal.message, line.line.number) from None
        return _Part(line, jobs, len(jobs) < most)


def _name_of(line: Line) -> str | None:
    name = line.fields.get("custom_id") if line.fields else None
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 64 else None


def _write_some(
    parts: list[_Part],
    images: StartImages,
    prices: Prices,
    writer: RowWriter,
    found: Validated,
) -> None:
    for part in parts:
        line = part.line
        if line.is_refused:
            continue
        if part.refusal is not None:
            line.refuse(found, _name_of(line.line), part.refusal.errors)
            continue
        if line.start is None:
            line.start = found.rows.tell()
        missing = next((j for j in part.jobs if j.init_image and not images[j.init_image]), None)
        if missing is not None:
            message = "There is no upload or image with this id."
            error = FieldError(pointer="/init_image", code="init_image_not_found", message=message)
            line.refuse(found, missing.custom_id, (error,))
            continue
        for job in part.jobs:
            start = images[job.init_image] if job.init_image else None
            plan = job.plan if start is None else job.plan.starting_from(start.size)
            seconds = prices.gpu_seconds(work_of_plan(plan))
            writer.write(job, plan, None if start is None else start.column(), seconds)
            line.totals.add(plan, seconds)
        if part.is_last:
            found.merge(line.totals)


async def _find_images(
    resources: Resources, principal: Principal, references: set[str]
) -> dict[str, InitImage | None]:
    """The pictures behind `upl_…` and `img_…` references, as far as they are this tenant's."""
    found: dict[str, InitImage | None] = dict.fromkeys(references)
    if not references:
        return found
    async with resources.tenant_transaction(principal) as session:
        for prefix, table in (("upl", Upload), ("img", Image)):
            ids = [row_id for ref in references if (row_id := _parse(prefix, ref)) is not None]
            if table is Upload and ids:
                await session.execute(image_queries.touch_uploads(principal.tenant_id, ids))
            statement = queries.list_start_images(principal.tenant_id, ids, table)
            for row_id, s3_key, sha256, *size in (
                (await session.execute(statement)).all() if ids else ()
            ):
                ref = to_wire("upl" if prefix == "upl" else "img", row_id)
                found[ref] = InitImage(ref, s3_key, sha256, (size[0], size[1]))
    return found


def _parse(prefix: str, reference: str) -> UUID | None:
    try:
        return from_wire("upl" if prefix == "upl" else "img", reference)
    except MalformedId:
        return None
