"""The baselines of submissions: the same app with two more routes, which do nothing.

`POST /noop` costs the server and the app's middleware. `POST /noop/checked` also authenticates its
key and validates the body of a submission, as every POST of this app does before its own work.

`create_ungrouped_app`: each submission has a transaction of its own.
"""

from typing import Annotated

from fastapi import Depends, FastAPI, Response

from api.app import create_app as create_darkroom
from api.core.auth import JobsWrite
from api.core.bodies import json_body
from api.jobs.submission import JobSubmission
from api.jobs.submit import SubmissionGroups


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

    return app


def create_ungrouped_app() -> FastAPI:
    """Darkroom's own app where nothing waits for company."""

    async def go_alone(*_: object) -> None:
        return None

    SubmissionGroups.accept = go_alone  # type: ignore[assignment,method-assign]
    return create_darkroom()
