"""Ask each part whether it answers."""

import asyncio
from collections.abc import Awaitable

from redis.exceptions import RedisError
from sqlalchemy import select

from api.deps import Resources
from api.problems import FieldError, Problem
from shared.errors import StorageUnavailable

_PATIENCE = 2.0
"""Seconds for each part; they are asked at the same time."""


async def check_readiness(resources: Resources) -> None:
    """Return when all parts answer.

    Raises:
        Problem: 503; `errors` names each part that does not.
    """
    checks = {
        "database": _database(resources),
        "redis": _redis(resources),
        "storage": resources.on_storage(resources.storage.check),
    }
    reasons = await asyncio.gather(*(_reason(check) for check in checks.values()))
    errors = [
        FieldError(pointer=None, parameter=part, code="unavailable", message=reason)
        for part, reason in zip(checks, reasons, strict=True)
        if reason is not None
    ]
    if errors:
        parts = ", ".join(str(error.parameter) for error in errors)
        raise Problem("not_ready", f"Not available: {parts}.", errors=errors)


async def _database(resources: Resources) -> None:
    async with resources.transaction() as session:
        await session.execute(select(1))


async def _redis(resources: Resources) -> None:
    await resources.redis.ping()


async def _reason(check: Awaitable[None]) -> str | None:
    try:
        await asyncio.wait_for(check, _PATIENCE)
    except StorageUnavailable as error:
        return error.message
    except (Problem, RedisError, OSError):
        return "It refuses the connection or does not answer."
    return None
