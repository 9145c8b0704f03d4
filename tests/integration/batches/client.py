"""Batches as a client makes and watches them."""

import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import httpx2

from tests.processes import ApiProcess, wait_until

TERMINAL = {"succeeded", "partial", "failed", "canceled", "expired"}


def jsonl(lines: Iterable[object]) -> bytes:
    """Objects as a JSONL file."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def post_file(
    http: httpx2.Client, content: bytes, name: str = "prompts.jsonl", **fields: Any
) -> httpx2.Response:
    """POST /v1/batches with a file; query parameters as `params`, headers as `headers`."""
    extra = {key: fields.pop(key) for key in ("params", "headers") if key in fields}
    data = {key: v if isinstance(v, str) else json.dumps(v) for key, v in fields.items()}
    files = {"file": (name, io.BytesIO(content))}
    return http.post("/v1/batches", files=files, data=data, **extra)


def make(api: ApiProcess, items: Sequence[object], **options: Any) -> dict[str, Any]:
    """A batch from a list; fails where it is not accepted."""
    body = {"defaults": {"model": "sim", "steps": 2}, "items": items, **options}
    answer = api.http.post("/v1/batches", json=body)
    assert answer.status_code == 202, answer.text
    batch: dict[str, Any] = answer.json()
    return batch


def get(api: ApiProcess, batch_id: str) -> dict[str, Any]:
    """The batch now."""
    answer = api.http.get(f"/v1/batches/{batch_id}")
    assert answer.status_code == 200, answer.text
    batch: dict[str, Any] = answer.json()
    return batch


def wait_ended(api: ApiProcess, batch_id: str, seconds: float = 60) -> dict[str, Any]:
    """The batch when it has ended."""

    def look() -> dict[str, Any] | None:
        batch = get(api, batch_id)
        return batch if batch["state"] in TERMINAL else None

    found: dict[str, Any] = wait_until(look, seconds, "the end of the batch")
    return found


def lines_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The objects of a JSONL answer."""
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines() if line]
