"""Check the URLs that clients register, and make the `webhook` column of jobs and batches."""

from collections.abc import Sequence
from typing import Any

from api.problems import Problem
from api.webhooks.schemas import BatchWebhook, JobWebhook
from shared.outbound import OutboundError, check_url
from shared.settings import Settings
from shared.webhooks.events import DEFAULT_BATCH_EVENTS, DEFAULT_JOB_EVENTS
from shared.webhooks.policy import webhook_policy


def check_target(url: str, settings: Settings, pointer: str) -> str:
    """The origin (scheme, host, port) of a URL that webhooks may go to, as far as can be told now.

    The guard judges the addresses again at each attempt.

    Raises:
        Problem: 422 at `pointer`, with the guard's own code.
    """
    try:
        target = check_url(url, webhook_policy(settings))
    except OutboundError as refusal:
        raise Problem.invalid(pointer, refusal.code, str(refusal)) from None
    return f"{target.scheme}://{target.host}:{target.port}"


def job_webhook(asked: JobWebhook | None, settings: Settings) -> dict[str, Any] | None:
    """The `webhook` column of a job; null without one.

    Raises:
        Problem: 422, the URL is not allowed.
    """
    return _column(asked, settings, DEFAULT_JOB_EVENTS)


def batch_webhook(asked: BatchWebhook | None, settings: Settings) -> dict[str, Any] | None:
    """The `webhook` column of a batch, and of its jobs where it names job events.

    Raises:
        Problem: 422, the URL is not allowed.
    """
    return _column(asked, settings, DEFAULT_BATCH_EVENTS)


def _column(
    asked: JobWebhook | BatchWebhook | None, settings: Settings, default: Sequence[str]
) -> dict[str, Any] | None:
    if asked is None:
        return None
    origin = check_target(asked.url, settings, "/webhook/url")
    events = [str(event) for event in asked.events or default]
    return {"url": asked.url, "events": events, "origin": origin}
