"""`stream: true`: previews as partial images while a job runs, then its images."""

import json
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi.sse import format_sse_event

from api.compat.following import follow
from api.compat.jobs import check_ended
from api.compat.openai.errors import retell
from api.compat.openai.schemas import ImageEdit, ImageGeneration
from api.compat.openai.service import read_images, serialize
from api.context import Resources
from api.core.errors import Problem
from api.core.principal import Principal
from api.jobs.redis_events import StreamEvent
from api.jobs.schemas import Job
from api.jobs.sse import HEARTBEAT


@dataclass
class _Partials:
    """Which previews to send: `wanted` of each image, evenly spaced as far as there are any."""

    wanted: int
    _fractions: dict[int, float] = field(default_factory=dict)
    _sent: Counter[int] = field(default_factory=Counter)

    def take(self, event: StreamEvent) -> dict[str, Any] | None:
        """A partial image, if the event is a preview to send."""
        data = event.decoded()
        index = data.get("image_index", 0)
        if event.kind == "progress":
            self._fractions[index] = data.get("fraction", 0.0)
        if event.kind != "preview" or self._sent[index] >= self.wanted:
            return None
        if not (self._sent[index] + 1) / (self.wanted + 1) <= self._fractions.get(index, 0.0) < 1:
            return None
        self._sent[index] += 1
        return {
            "b64_json": data.get("data"),
            "output_format": "webp",
            "partial_image_index": self._sent[index] - 1,
            "image_index": index,
        }


async def stream_images(
    resources: Resources, principal: Principal, job: Job, body: ImageGeneration, seconds: float
) -> AsyncGenerator[bytes, None]:
    """Server-sent events as OpenAI names them; the last ones are the images, or an error."""
    name = "image_edit" if isinstance(body, ImageEdit) else "image_generation"
    partials = _Partials(body.partial_images or 0)
    try:
        async with aclosing(follow(resources, principal, job, seconds)) as followed:
            async for news in followed:
                if news is None:
                    yield HEARTBEAT
                elif isinstance(news, Job):
                    job = news
                elif (partial := partials.take(news)) is not None:
                    yield _event(f"{name}.partial_image", job, body, partial)
        check_ended(job)
        for datum in await read_images(resources, principal, job, body):
            facts = serialize(job, body, [datum]).usage.model_dump()
            image = datum.model_dump(exclude_none=True)
            yield _event(f"{name}.completed", job, body, image | {"usage": facts})
    except Problem as problem:
        error = json.dumps({"type": "error", **retell(problem).members})
        yield format_sse_event(event="error", data_str=error)


def _event(kind: str, job: Job, body: ImageGeneration, members: dict[str, Any]) -> bytes:
    shared = serialize(job, body, []).model_dump(
        include={"background", "job", "output_format", "quality", "size"}
    )
    data = {"type": kind, **shared, "created_at": int(time.time()), **members}
    return format_sse_event(event=kind, data_str=json.dumps(data))
