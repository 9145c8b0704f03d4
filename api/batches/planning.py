"""A line of a batch to its planned jobs, and those to rows of PostgreSQL's COPY."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, BinaryIO
from uuid import UUID

from pydantic import ValidationError

from api.batches.columns import fill
from api.batches.expansion import Expander
from api.batches.file_formats import Line
from api.batches.report import FileRefused, LineRefused
from api.core.errors import Problem, from_validation
from api.jobs.loras import OwnLoras
from api.jobs.options import IMAGE_LISTS
from api.jobs.planning import Plan, plan_job
from api.jobs.submission import JobSubmission
from api.webhooks.service import job_webhook
from shared.core.broker import BULK
from shared.core.model_catalog import ModelCatalog
from shared.core.settings import Settings

MAX_CUSTOM_ID = 64

_MAX_CHARACTERS = 128 * 1024 * 1024
"""Of all texts of a batch's jobs, those of refused lines included. A file has 100 MB at most, but
defaults and alternatives multiply a few bytes to more."""

_CUSTOM_ID_RULE = f"custom_id must have 1 to {MAX_CUSTOM_ID} printable characters."


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job of a batch, complete but for the image behind its `init_image`."""

    line: int
    custom_id: str
    plan: Plan
    init_image: str | None
    mask_image: str | None
    start_within: float | None
    finish_within: float | None
    webhook: dict[str, Any] | None


class LineChecker:
    """Checks the lines of one batch in order; remembers which names are taken."""

    def __init__(
        self,
        defaults: dict[str, Any],
        *,
        templates: bool,
        catalog: ModelCatalog,
        settings: Settings,
        families: Mapping[str, str],
        uploaded: OwnLoras,
        webhook: dict[str, Any] | None = None,
    ) -> None:
        """`families` and `uploaded` are as in `plan_job`; `webhook` is for jobs whose lines bring
        none."""
        self._defaults = defaults
        self._webhook = webhook
        self._expander = Expander(templates=templates)
        self._catalog = catalog
        self._settings = settings
        self._families = families
        self._uploaded = uploaded
        self._names: set[str] = set()
        self._characters_left = _MAX_CHARACTERS

    def check(self, line: Line) -> Iterator[PlannedJob]:
        """The jobs of a line, planned as they are asked for; it is accepted when all have come.

        Raises:
            LineRefused: while iterating: it breaks rules. Nothing of it is accepted.
            FileRefused: while iterating: the lines of the batch take too much work.
        """
        if line.fields is None:
            raise line.refusal or LineRefused.because("empty", "The line is empty.")
        fields = self._with_defaults(line.fields)
        name = self._name(line.number, fields.pop("custom_id", None))
        expansion = self._expander.expand(fields)
        names: list[str] = []
        for number, variant in enumerate(expansion.jobs, 1):
            names.append(name if expansion.count == 1 else f"{name}-{number}")
            job = _filled(variant, line.values)
            self._charge(job)
            yield self._plan(line.number, names[-1], job)
        self._take(names)
        self._expander.room -= len(names)

    def _with_defaults(self, fields: dict[str, Any]) -> dict[str, Any]:
        if not self._defaults:
            return dict(fields)
        merged = self._defaults | fields
        # A line's own seed or seeds replace the defaults' other way of saying it.
        if "seeds" in fields and "seed" not in fields:
            merged.pop("seed", None)
        elif "seed" in fields and "seeds" not in fields:
            merged.pop("seeds", None)
        return merged

    def _name(self, number: int, custom_id: Any) -> str:
        if custom_id is None:
            return f"line-{number}"
        if (
            not isinstance(custom_id, str)
            or not 1 <= len(custom_id) <= MAX_CUSTOM_ID
            or not custom_id.isprintable()
        ):
            raise LineRefused.because("malformed_custom_id", _CUSTOM_ID_RULE, "/custom_id")
        return custom_id

    def _charge(self, fields: dict[str, Any]) -> None:
        metadata = fields.get("metadata")
        values = [*fields.values(), *(metadata.values() if isinstance(metadata, dict) else ())]
        self._characters_left -= sum(len(value) for value in values if isinstance(value, str))
        if self._characters_left < 0:
            message = f"Its jobs have texts of more than {_MAX_CHARACTERS} characters."
            raise FileRefused("too_large", message)

    def _take(self, names: list[str]) -> None:
        for name in names:
            if name in self._names:
                message = f"Another line has the custom_id {name}."
                raise LineRefused.because("duplicate_custom_id", message, "/custom_id")
        self._names.update(names)

    def _plan(self, number: int, custom_id: str, fields: dict[str, Any]) -> PlannedJob:
        try:
            submission = JobSubmission.model_validate(fields)
        except ValidationError as error:
            problem = from_validation(
                error.errors(include_url=False, include_input=False), JobSubmission
            )
            raise LineRefused(*problem.errors) from None
        for field in ("init_image", "mask_image"):
            reference = getattr(submission, field)
            if reference is not None and not reference.startswith(("upl_", "img_")):
                message = f"In a batch, {field} must be an upload or image ID."
                raise LineRefused.because(f"malformed_{field}", message, f"/{field}")
        for name in IMAGE_LISTS:
            for index, item in enumerate(getattr(submission, name)):
                if not item.image.startswith(("upl_", "img_")):
                    message = f"In a batch, an image of {name} must be an upload or image ID."
                    code = f"malformed_{name.removesuffix('s')}"
                    raise LineRefused.because(code, message, f"/{name}/{index}/image")
        try:
            plan = plan_job(
                submission, self._catalog, self._settings, self._families, self._uploaded
            )
            webhook = job_webhook(submission.webhook, self._settings) or self._webhook
        except Problem as problem:
            raise LineRefused(*problem.errors) from None
        return PlannedJob(
            line=number,
            custom_id=custom_id,
            plan=plan,
            init_image=submission.init_image,
            mask_image=submission.mask_image,
            start_within=submission.start_within,
            finish_within=submission.finish_within,
            webhook=webhook,
        )


def _filled(fields: dict[str, Any], values: tuple[str, ...]) -> dict[str, Any]:
    prompt = fields.get("prompt")
    if not values or not isinstance(prompt, str):
        return fields
    return fields | {"prompt": fill(prompt, values)}


_NULL = "\\N"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class OrderedIds:
    """UUIDv7s: a counter of 4,096 to a millisecond, then 62 random bits (RFC 9562, 6.2, method 1).

    All are greater than `after`; a batch's jobs so lie in its lines' order behind the batch itself.
    """

    def __init__(self, after: UUID) -> None:
        self._millisecond = max(time.time_ns() // 1_000_000, (after.int >> 80) + 1)
        self._count = 0

    def next_hex(self) -> str:
        """The next id, as 32 hexadecimal digits."""
        millisecond = self._millisecond + (self._count >> 12)
        counter = self._count & 0xFFF
        self._count += 1
        noise = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
        return f"{millisecond:012x}7{counter:03x}{(0b10 << 62) | noise:016x}"


class RowWriter:
    """Writes rows in the order of `COPIED_COLUMNS` to a file."""

    def __init__(
        self,
        file: BinaryIO,
        *,
        batch_id: UUID,
        tenant_id: UUID,
        api_key_id: str,
        max_attempts: int,
        now: datetime,
    ) -> None:
        self._file = file
        self._ids = OrderedIds(batch_id)
        self._tenant = tenant_id.hex
        self._key = _escape(api_key_id)
        self._batch = batch_id.hex
        self._end = f"queued\t{max_attempts}\n"
        self._now = now

    def write(
        self, job: PlannedJob, plan: Plan, init_image: Mapping[str, Any] | None, gpu_seconds: float
    ) -> str:
        """One job as planned in the end; its id, in hexadecimal digits.

        `init_image` is the column of that name, `gpu_seconds` are as estimated.
        """
        job_id = self._ids.next_hex()
        row = "\t".join(
            (
                job_id,
                self._tenant,
                self._key,
                plan.session_id,
                self._batch,
                _escape(job.custom_id),
                str(job.line),
                plan.kind,
                plan.model,
                BULK,
                _escape(plan.prompt),
                _NULL if plan.negative_prompt is None else _escape(plan.negative_prompt),
                "{" + ",".join(map(str, plan.seeds)) + "}",
                f"{plan.width}\t{plan.height}\t{plan.steps}\t{plan.guidance_scale}",
                _NULL if plan.true_cfg_scale is None else repr(plan.true_cfg_scale),
                plan.scheduler,
                _NULL if plan.strength is None else repr(plan.strength),
                plan.resize_mode or _NULL,
                _NULL if init_image is None else _escape(json.dumps(init_image)),
                _escape(json.dumps(plan.loras)) if plan.loras else "[]",
                _escape(json.dumps(plan.options)) if plan.options else "{}",
                plan.output_format,
                "t" if plan.previews else "f",
                _escape(json.dumps(plan.metadata)) if plan.metadata else "{}",
                f"{plan.cost}\t{gpu_seconds:.9g}",
                self._deadline(job.start_within),
                self._deadline(job.finish_within),
                _NULL if job.webhook is None else _escape(json.dumps(job.webhook)),
                self._end,
            )
        )
        self._file.write(row.encode("utf-8"))
        return job_id

    def _deadline(self, seconds: float | None) -> str:
        return _NULL if seconds is None else (self._now + timedelta(seconds=seconds)).isoformat()


def _escape(text: str) -> str:
    if text.isprintable() and "\\" not in text:
        return text
    return text.translate(_ESCAPES)
