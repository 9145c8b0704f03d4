"""The baselines of submissions: the same app with three more routes.

`POST /noop` costs the server and the app's middleware. `POST /noop/checked` also authenticates its
key and validates the body of a submission, as every POST of this app does before its own work.
`POST /noop/floor` then writes a job in groups and hands it to Redis, by the same statement and
message, and nothing else: no plan, no estimate, no admission, no answer that shows the job.

`create_ungrouped_app`: each submission has a transaction of its own.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Response

from api.app import create_app as create_darkroom
from api.context import Res, Resources
from api.core.auth import JobsWrite
from api.core.bodies import json_body
from api.core.groups import Groups
from api.jobs.submission import JobSubmission
from api.jobs.submit import SubmissionGroups
from shared.core.tenants import enable_rls_of
from shared.jobs.models import Job
from shared.jobs.queries import accept
from tests.bench.floor_worker import MODEL
from tests.jobs import job_columns


def create_app() -> FastAPI:
    """Darkroom's own app and the two routes."""
    app = create_darkroom()

    @app.post("/noop", status_code=202)
    async def noop() -> dict[str, str]:
        return {"state": "queued"}

    @app.post("/noop/checked", status_code=202)
    async def checked(
        _: JobsWrite, __: Annotated[JobSubmission, Depends(json_body(JobSubmission))]
    ) -> Response:
        return Response(b'{"state":"queued"}', 202, media_type="application/json")

    groups: Groups[tuple[Resources, dict[str, Any]], None] = Groups("floor", _write)

    @app.post("/noop/floor", status_code=202)
    async def floor(
        resources: Res,
        principal: JobsWrite,
        _: Annotated[JobSubmission, Depends(json_body(JobSubmission))],
    ) -> Response:
        columns = {
            **job_columns(principal.tenant_id, model=MODEL, session_id="bench"),
            **{"api_key_id": principal.key_id, "steps": 1, "cost": 4096, "estimate": None},
        }
        await groups.add(principal.key_id, (resources, columns))
        await resources.publisher.publish(Job(**columns))
        return Response(b'{"state":"queued"}', 202, media_type="application/json")

    return app


async def _write(group: Sequence[tuple[Resources, dict[str, Any]]]) -> list[None]:
    """Of one tenant, which is the only one here."""
    resources, first = group[0]
    async with resources.group_connection() as driver, driver.pipeline():
        await driver.execute("BEGIN")
        await enable_rls_of(driver, first["tenant_id"])
        await driver.execute(*accept.accept_jobs([columns for _, columns in group]), prepare=True)
        await driver.execute("COMMIT")
    return [None] * len(group)


def create_ungrouped_app() -> FastAPI:
    """Darkroom's own app where nothing waits for company."""

    async def go_alone(*_: object) -> None:
        return None

    SubmissionGroups.accept = go_alone  # type: ignore[assignment,method-assign]
    return create_darkroom()
