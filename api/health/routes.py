"""HTTP of health checks, the root, and the catalogue of problems."""

from typing import Annotated

from fastapi import APIRouter, Path

from api.deps import Res
from api.health.schemas import Health, ProblemTypeInfo, Readiness, Root
from api.health.service import check_readiness
from api.problems import CATALOGUE, Problem, responses
from api.version import VERSION

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="health.live", summary="Does the process answer?")
async def live() -> Health:
    """Says nothing about Postgres, Redis or S3; see /readyz."""
    return Health(status="ok", version=VERSION)


@router.get(
    "/readyz",
    operation_id="health.ready",
    summary="Can it serve requests?",
    responses=responses("not_ready", public=True),
)
async def ready(resources: Res) -> Readiness:
    """200 when Postgres, Redis and S3 answer; otherwise 503 with the parts that do not."""
    await check_readiness(resources)
    return Readiness(status="ready", database="ok", redis="ok", storage="ok")


@router.get("/", operation_id="root", summary="Where to go from here")
async def root(resources: Res) -> Root:
    """Links to the documentation and the main resources."""
    base = resources.settings.public_url.rstrip("/")
    return Root(
        name="darkroom",
        version=VERSION,
        links={
            "docs": f"{base}/docs",
            "openapi": f"{base}/openapi.json",
            "jobs": f"{base}/v1/jobs",
            "models": f"{base}/v1/models",
            "health": f"{base}/healthz",
            "readiness": f"{base}/readyz",
        },
    )


@router.get(
    "/problems/{code}",
    operation_id="problems.get",
    summary="What a problem type means",
    responses=responses("not_found", public=True),
)
async def problem_type(
    code: Annotated[str, Path(description="The `code` of a problem, such as `not_found`.")],
) -> ProblemTypeInfo:
    """The page that a problem's `type` points to."""
    kind = CATALOGUE.get(code)
    if kind is None:
        raise Problem("not_found", "There is no problem type with this code.")
    return ProblemTypeInfo(code=kind.code, status=kind.status, title=kind.title, doc=kind.doc)
