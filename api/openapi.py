"""The OpenAPI document: FastAPI's, with the body models that the API reads by itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from api.bodies import BODY_MODELS
from api.problems import MEDIA_TYPE
from api.version import VERSION

_REF = "#/components/schemas/{model}"
DESCRIPTION = (
    "An asynchronous job queue for image generation with diffusion models. Submit a job, poll it "
    "or follow its events, and read its pictures. Errors are RFC 9457 problems with a stable "
    "`code`; GET /problems/{code} explains each."
)


def install_openapi(app: FastAPI) -> None:
    """Replace the application's document by the complete one, made once on first use."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _build(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title="Darkroom", version=VERSION, description=DESCRIPTION, routes=app.routes
    )
    models = sorted(BODY_MODELS, key=lambda model: model.__name__)
    _, bodies = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schema["components"]["schemas"].update(bodies.get("$defs", {}))
    for path in schema["paths"].values():
        for operation in path.values():
            for answer in operation["responses"].values():
                _tell_problems_apart(answer)
    return schema


def _tell_problems_apart(answer: dict[str, Any]) -> None:
    """A problem comes as application/problem+json, never as plain JSON."""
    content = answer.get("content", {})
    if MEDIA_TYPE in content and "application/json" in content:
        content[MEDIA_TYPE] = content.pop("application/json")
