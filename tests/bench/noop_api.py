"""The baselines of submissions: the same app with two more routes, which do nothing.

`POST /noop` costs the server and the app's middleware. `POST /noop/checked` also authenticates its
key and validates the body of a submission, as every POST of this app does before its own work.
"""

from typing import Annotated

from fastapi import Depends, FastAPI, Response

from api.app import create_app as create_darkroom
from api.core.auth import JobsWrite
from api.core.bodies import json_body
from api.jobs.schemas import JobSubmission


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
