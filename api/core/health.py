"""Whether the service lives and can work, and, for machines, `/readyz/database` and `/metrics`."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import select

from api.context import Res, Resources
from api.core.error_catalogue import CATALOGUE
from api.core.errors import FieldError, Problem, problems
from api.core.serialization import AnswerModel
from shared.core.broker import REDIS_AWAY
from shared.core.errors import StorageUnavailable
from shared.core.metrics import CONTENT_TYPE, is_authorized, render
from shared.core.settings import darkroom_version


class Health(AnswerModel):
    """The process answers."""

    status: Literal["ok"]
    """Always `ok`."""
    version: str
    """Version of the server."""


class Readiness(AnswerModel):
    """Every part answers."""

    status: Literal["ready"]
    """Always `ready`; otherwise the answer is a 503."""
    database: Literal["ok"]
    """Postgres answers."""
    redis: Literal["ok"]
    """Redis answers."""
    storage: Literal["ok"]
    """Object storage answers."""


class Root(AnswerModel):
    """Where to go from here."""

    name: str
    """Always `darkroom`."""
    version: str
    """Version of the server."""
    links: dict[str, str]
    """URLs of the documentation and of the main resources, by name."""


class ProblemTypeInfo(AnswerModel):
    """One entry of the catalogue of problems."""

    code: str
    """The stable code, as in the `code` of a problem."""
    status: int
    """The HTTP status that it comes with."""
    title: str
    """Its meaning, in one line."""
    doc: str
    """What happened and what to do about it."""
    retryable: bool
    """Whether the same request can succeed later, unchanged."""


_CHECK_TIMEOUT = 2.0
"""Seconds for each part; they are asked at the same time."""


async def check_readiness(resources: Resources) -> None:
    """Return when all parts answer.

    Raises:
        Problem: 503; `errors` names each part that does not.
    """
    checks: dict[str, Awaitable[object]] = {
        "database": _database(resources),
        "redis": resources.redis.ping(),
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


async def _reason(check: Awaitable[object]) -> str | None:
    try:
        await asyncio.wait_for(check, _CHECK_TIMEOUT)
    except StorageUnavailable as error:
        return error.message
    except (Problem, *REDIS_AWAY):
        return "It refuses the connection or does not answer."
    return None


router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="health.live", summary="Check that the process answers")
async def live() -> Health:
    """Says nothing about Postgres, Redis or S3; see /readyz."""
    return Health(status="ok", version=darkroom_version())


@router.get("/readyz", operation_id="health.ready", summary="Check that it can serve requests")
@problems("not_ready")
async def ready(resources: Res) -> Readiness:
    """200 when Postgres, Redis and S3 answer; otherwise 503 with the parts that do not."""
    await check_readiness(resources)
    return Readiness(status="ready", database="ok", redis="ok", storage="ok")


@router.get("/", operation_id="root", summary="List the entry points")
async def root(resources: Res) -> Root:
    """Links to the documentation and the main resources."""
    base = resources.settings.public_url
    return Root(
        name="darkroom",
        version=darkroom_version(),
        links={
            "docs": f"{base}/docs",
            "openapi": f"{base}/openapi.json",
            "jobs": f"{base}/v1/jobs",
            "models": f"{base}/v1/models",
            "health": f"{base}/healthz",
            "readiness": f"{base}/readyz",
        },
    )


@router.get("/problems/{code}", operation_id="problems.get", summary="Explain a problem type")
async def problem_type(
    code: Annotated[str, Path(description="The `code` of a problem, such as `not_found`.")],
) -> ProblemTypeInfo:
    """The page that a problem's `type` points to."""
    kind = CATALOGUE.get(code)
    if kind is None:
        raise Problem("not_found", "There is no problem type with this code.")
    return ProblemTypeInfo.of(kind)


unlisted_router = APIRouter(include_in_schema=False)


@unlisted_router.get("/readyz/database")
async def may_have_traffic(resources: Res) -> Response:
    """200 when Postgres answers, whatever Redis and S3 do: for what decides where requests go.

    Without them jobs are still accepted and read. An outage of Redis or S3 is one of all processes
    at once, so that to send them nothing would end the service.
    """
    if await _reason(_database(resources)) is not None:
        raise Problem("not_ready", "Not available: database.")
    return Response("ok", media_type="text/plain")


@unlisted_router.get("/metrics")
async def metrics(request: Request, resources: Res) -> Response:
    """With the token, where one is set. Without one the path does not exist here: every client of
    a proxy on this host looks like a neighbour, so a listener of its own serves them."""
    token = resources.settings.metrics_token
    if token is None:
        raise Problem("not_found", "There is nothing at this path.")
    if not is_authorized(request.headers.get("authorization", ""), token):
        raise Problem(
            "unauthenticated",
            "The metrics need their token.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return Response(await asyncio.to_thread(render), media_type=CONTENT_TYPE)
