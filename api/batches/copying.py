"""Planned jobs as rows of PostgreSQL's COPY text format, and ids that keep their order."""

import json
import os
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, BinaryIO
from uuid import UUID

from api.batches.lines import PlannedJob
from api.jobs.planning import Plan
from shared.queue.names import BULK

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
        self,
        job: PlannedJob,
        plan: Plan,
        init_image: Mapping[str, Any] | None,
        gpu_seconds: float,
    ) -> None:
        """One job as planned in the end.

        `init_image` is the column of that name, `gpu_seconds` are as estimated.
        """
        row = "\t".join(
            (
                self._ids.next_hex(),
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
                plan.scheduler,
                _NULL if plan.strength is None else repr(plan.strength),
                plan.resize_mode or _NULL,
                _NULL if init_image is None else _escape(json.dumps(init_image)),
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

    def _deadline(self, seconds: float | None) -> str:
        return _NULL if seconds is None else (self._now + timedelta(seconds=seconds)).isoformat()


def _escape(text: str) -> str:
    if text.isprintable() and "\\" not in text:
        return text
    return text.translate(_ESCAPES)
