"""Check a whole file before anything of it is kept: its lines become rows in a temporary file.

The work is done in threads, some hundred jobs at a time, so that the event loop keeps answering
and no line, whatever it expands to, is ever held whole.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Hashable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import BinaryIO, cast
from uuid import UUID

from api.batches.file_formats import MAX_LINES, Line
from api.batches.planning import LineChecker, PlannedJob, RowWriter
from api.batches.report import FileRefused, LineError, LineRefused, Report
from api.context import Resources
from api.core.errors import FieldError, Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.jobs.estimates import Estimates, work_of_job
from api.jobs.init_images import InitImage, check_mask, check_mask_size, find_images, word_of
from api.jobs.planning import Plan
from api.jobs.prompt_filters import PromptFilters, prompt_of
from shared.batches import queries
from shared.core.errors import FilterUnavailable
from shared.core.filter_process import Prompt
from shared.core.filters import NOTHING, Findings
from shared.core.ids import new_id
from shared.jobs.calibration import Prices

_AT_ONCE = 250
"""Lines read, and jobs made of them; of the largest that there can be, this many take 20 MB."""
_MASKS_LOOKED_AT = 200
"""Of a batch: each is read from S3 and decoded while the client waits."""
_PROMPTS_AT_ONCE = 16
"""In one question to the filters; other requests have their turn in between."""
_FILTER_SECONDS = 120.0
"""What filters may take for a file while its client waits."""
_AT_THE_SAME_TIME = 2
"""Files that one process validates; the others wait their turn."""
turns = asyncio.Semaphore(_AT_THE_SAME_TIME)
_FIRST = 5
_IN_MEMORY = 1024 * 1024
"""Bytes of rows that stay in memory; a larger batch goes to disk."""


@dataclass
class Totals:
    """What some lines make."""

    jobs: int = 0
    images: int = 0
    cost: int = 0
    gpu_seconds: float = 0.0
    """As estimated."""
    largest: int = 0
    """Pixels of the largest image."""
    models: set[str] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)
    found: dict[str, Findings] = field(default_factory=dict)
    """What filters have against the prompts of jobs, by their ids in hexadecimal digits."""
    first: list[tuple[PlannedJob, Plan]] = field(default_factory=list)
    """The first five."""

    def add(self, job: PlannedJob, plan: Plan, gpu_seconds: float) -> None:
        """One more job."""
        if len(self.first) < _FIRST:
            self.first.append((job, plan))
        self.jobs += 1
        self.images += len(plan.seeds)
        self.cost += plan.cost
        self.gpu_seconds += gpu_seconds
        self.largest = max(self.largest, plan.pixels)
        self.models.add(plan.model)
        self.sessions.add(plan.session_id)

    def merge(self, other: "Totals") -> None:
        """The jobs of more lines."""
        self.jobs += other.jobs
        self.images += other.images
        self.cost += other.cost
        self.gpu_seconds += other.gpu_seconds
        self.largest = max(self.largest, other.largest)
        self.first += other.first[: _FIRST - len(self.first)]
        self.models |= other.models
        self.sessions |= other.sessions
        self.found |= other.found


@dataclass
class Validated(Totals):
    """A file that was read to its end, or to where it could not be read on."""

    batch_id: UUID = field(kw_only=True)
    tenant_id: UUID = field(kw_only=True)
    now: datetime = field(kw_only=True)
    """The database's time from which the lines' deadlines count."""
    rows: BinaryIO = field(kw_only=True)
    """The jobs, in COPY's text format."""
    report: Report = field(default_factory=Report)
    is_refused: bool = False
    """The file as a whole is at fault, whatever `on_error` says."""
    lines: int = 0
    invalid_lines: int = 0
    filter_seconds: float = 0.0
    """What filters have taken."""

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
    """Read and check all lines, holding one of `turns`.

    Raises:
        Problem: 503, the database is unavailable, or a filter gives no answer.
    """
    async with resources.tenant_transaction(principal) as session:
        now = (await session.scalars(queries.read_clock())).one()
    prices = await resources.get(Estimates).prices()
    spool = cast("BinaryIO", tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
    validated = Validated(batch_id=new_id(), tenant_id=principal.tenant_id, now=now, rows=spool)
    reader = _LineReader(lines, checker, validated)
    writer = RowWriter(
        validated.rows,
        batch_id=validated.batch_id,
        tenant_id=principal.tenant_id,
        api_key_id=principal.key_id,
        max_attempts=resources.settings.max_attempts,
        now=now,
    )
    images = _Known()
    try:
        while not reader.is_at_end and not validated.is_refused:
            parts = await on_thread(reader.read_some)
            wanted = {
                image
                for part in parts
                for job in part.jobs
                for image in (job.init_image, job.mask_image, *job.plan.images.values())
                if image
            }
            new = wanted - images.found.keys()
            images.found |= await find_images(resources, principal, new)
            await _check_masks(resources, parts, images)
            images.prompts = await _check_prompts(resources, principal, parts, validated)
            await on_thread(_write_some, parts, images, prices, writer, validated)
        if not validated.lines and not validated.report.count:
            validated.refuse_file("empty", "There are no lines.")
    except BaseException:
        validated.close()
        raise
    return validated


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
        self, validated: Validated, custom_id: str | None, errors: tuple[FieldError, ...]
    ) -> None:
        """Take back what was written of it."""
        self.is_refused = True
        if self.start is not None:
            validated.rows.seek(self.start)
            validated.rows.truncate()
        validated.refuse_line(self.line.number, custom_id, errors)


@dataclass
class _Part:
    """Some jobs of a line, the last of them, or why there are none."""

    line: _OpenLine
    jobs: list[PlannedJob]
    is_last: bool
    refusal: LineRefused | None = None


@dataclass
class _Known:
    """What is known of the images and the prompts that lines name."""

    found: dict[str, InitImage | None] = field(default_factory=dict)
    """By their ids; None: not this tenant's."""
    masks: dict[Hashable, Problem | None] = field(default_factory=dict)
    """Of those that were looked at, by `_mask_of`, what is wrong with them."""
    prompts: dict[Prompt, Findings] = field(default_factory=dict)
    """What filters have against those of the jobs in hand; empty without filters."""

    def findings(self, job_id: str, plan: Plan, tenant_id: UUID) -> dict[str, Findings]:
        """What filters have against a job, by its id; empty for nothing."""
        found = self.prompts and self.prompts[prompt_of(plan, str(tenant_id))]
        return {job_id: found} if found and any(found) else {}


class _LineReader:
    """Reads and checks the lines of a file, some jobs at a time."""

    def __init__(self, lines: Iterator[Line], checker: LineChecker, validated: Validated) -> None:
        self._lines = lines
        self._checker = checker
        self._validated = validated
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
            self._validated.refuse_file(refusal.code, refusal.message, refusal.line)
            self.is_at_end = True
        return parts

    def _current(self) -> _OpenLine | None:
        if self._open is not None and not self._open.is_refused:
            return self._open
        line = next(self._lines, None)
        if line is None:
            self.is_at_end = True
            return None
        self._validated.lines += 1
        if self._validated.lines > MAX_LINES:
            message = f"A batch may have {MAX_LINES} lines at most."
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
    images: _Known,
    prices: Prices,
    writer: RowWriter,
    validated: Validated,
) -> None:
    for part in parts:
        line = part.line
        if line.is_refused:
            continue
        if part.refusal is not None:
            line.refuse(validated, _name_of(line.line), part.refusal.errors)
            continue
        if line.start is None:
            line.start = validated.rows.tell()
        started, refusal = list[tuple[PlannedJob, Plan, InitImage | None]](), None
        for job in part.jobs:
            try:
                start, plan = _resolved(job, images)
            except Problem as problem:
                refusal = job.custom_id, tuple(problem.errors)
                break
            started.append((job, plan, start))
        if refusal is not None:
            line.refuse(validated, *refusal)
            continue
        for job, plan, start in started:
            seconds = prices.gpu_seconds(work_of_job(plan))
            job_id = writer.write(job, plan, None if start is None else start.column(), seconds)
            line.totals.add(job, plan, seconds)
            line.totals.found |= images.findings(job_id, plan, validated.tenant_id)
        if part.is_last:
            validated.merge(line.totals)


def _resolved(job: PlannedJob, images: _Known) -> tuple[InitImage | None, Plan]:
    """The image that a job starts from, and its plan with all images.

    Raises:
        Problem: an image is not this tenant's, or does not suit the job.
    """
    start = _start(job, images.found)
    plan = job.plan if start is None else job.plan.starting_from(start.size)
    if start is not None and (fault := images.masks.get(_mask_of(job, start, plan))):
        raise fault
    return start, _with_images(plan, images.found)


def _mask_of(job: PlannedJob, start: InitImage, plan: Plan) -> Hashable:
    """By what its mask is known again; None without one that is an image."""
    if job.mask_image is None and not plan.options.get("mask_from_alpha"):
        return None
    read = start.mask or start
    options = (plan.options.get("mask_from_alpha"), plan.options.get("mask_blur"))
    return read.sha256, plan.width, plan.height, plan.resize_mode, *options


async def _check_masks(resources: Resources, parts: list[_Part], images: _Known) -> None:
    """Look at the masks, each once, as far as there is time: workers look at all of them."""
    for job in (job for part in parts for job in part.jobs):
        try:
            start, plan = _resolved(job, images)
        except Problem:
            continue  # which its line will say
        if start is None or (mask := _mask_of(job, start, plan)) is None:
            continue
        if mask in images.masks or len(images.masks) >= _MASKS_LOOKED_AT:
            continue
        images.masks[mask] = None
        try:
            await check_mask(resources, start.mask or start, plan)
        except Problem as problem:
            if problem.kind.status == 422:
                images.masks[mask] = problem


async def _check_prompts(
    resources: Resources, principal: Principal, parts: list[_Part], validated: Validated
) -> dict[Prompt, Findings]:
    """What the operator's filters have against the prompts; nothing where there are none.

    Filters may be slow: meanwhile other files have the turn.
    """
    filters = resources.get(PromptFilters)
    if not filters.may_look:
        return {}
    tenant = str(principal.tenant_id)
    prompts = list(
        dict.fromkeys(prompt_of(job.plan, tenant) for part in parts for job in part.jobs)
    )
    found: dict[Prompt, Findings] = {}
    began = time.monotonic() - validated.filter_seconds
    async with _without_turn():
        for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
            some = prompts[start : start + _PROMPTS_AT_ONCE]
            if time.monotonic() > began + _FILTER_SECONDS:
                findings = _unchecked(filters, len(some), validated)
            else:
                findings = await filters.check(resources, some)
            found |= zip(some, findings, strict=True)
        validated.filter_seconds = time.monotonic() - began
    return found


def _unchecked(filters: PromptFilters, count: int, validated: Validated) -> list[Findings]:
    """Of prompts that there is no time for."""
    try:
        return [filters.unchecked()] * count
    except FilterUnavailable:
        if not validated.is_refused:
            message = f"The filters took more than {_FILTER_SECONDS:g} s. Send fewer lines at once."
            validated.refuse_file("filters_too_slow", message)
        return [NOTHING] * count


@asynccontextmanager
async def _without_turn() -> AsyncIterator[None]:
    turns.release()
    try:
        yield
    finally:
        # Shielded: whoever holds the turn gives it back, even if the wait for it is canceled.
        await asyncio.shield(turns.acquire())


def _start(job: PlannedJob, images: Mapping[str, InitImage | None]) -> InitImage | None:
    """The image that a job starts from, with its mask.

    Raises:
        Problem: one of them is not this tenant's, or they differ in size.
    """
    found: dict[str, InitImage | None] = {}
    for name, reference in (("init_image", job.init_image), ("mask_image", job.mask_image)):
        found[name] = images[reference] if reference else None
        if reference and found[name] is None:
            raise _not_found(name)
    start, mask = found["init_image"], found["mask_image"]
    if start is None or mask is None:
        return start
    check_mask_size(mask.size, start.size)
    return replace(start, mask=mask)


def _with_images(plan: Plan, images: Mapping[str, InitImage | None]) -> Plan:
    """The plan with what is kept of the images that its options name.

    Raises:
        Problem: one of them is not this tenant's.
    """
    stored = {}
    for place, reference in plan.images.items():
        if (image := images[reference]) is None:
            raise _not_found(place)
        stored[place] = image.option()
    return plan.with_images(stored)


def _not_found(place: str) -> Problem:
    message = "There is no upload or image with this id."
    return Problem.invalid(f"/{place}", f"{word_of(place)}_not_found", message)
