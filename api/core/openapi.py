"""The version of this software, and its OpenAPI document."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.core.bodies import BODY_MODELS
from api.core.errors import MEDIA_TYPE


def _installed_version() -> str:
    try:
        return version("darkroom-server")
    except PackageNotFoundError:
        return "dev"


VERSION = _installed_version()
"""``dev`` in a checkout that is not installed."""


_REF = "#/components/schemas/{model}"


DESCRIPTION = (
    "An asynchronous job queue for image generation with diffusion models. Submit a job, poll it "
    "or follow its events, and read its pictures. Errors are RFC 9457 problems with a stable "
    "`code`; GET /problems/{code} explains each."
)


TAGS = {
    "jobs": "Submit images to be made, follow them, cancel and retry.",
    "batches": "Many jobs from one JSON list or one JSONL or CSV file, with results and exports.",
    "images": "Finished images: files, receipts, and making them again.",
    "uploads": "Images to start from.",
    "gallery": "Star images; delete images, uploads, jobs and sessions.",
    "sessions": "Folders of jobs and images, made on first use.",
    "search": "Find images by meaning, by text or by an image.",
    "prompts": "Prompts worth trying.",
    "models": "What can be asked for.",
    "webhooks": "Signed events to your own URLs, and the log of their deliveries.",
    "keys": "API keys, their quotas and what they have used.",
    "workers": "For operators: the processes that make images.",
    "queues": "For operators: how much work waits.",
    "health": "Whether the service works, and where its parts are. Needs no key.",
}
"""In the order of the documentation pages."""


_DEFAULT_DESCRIPTION = "Successful Response"


_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")
"""Schemas of the 422 that FastAPI documents by itself and this API never sends."""


def install_openapi(app: FastAPI) -> None:
    """Replace the application's document by the complete one, made once on first use."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _build(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title="Darkroom",
        version=VERSION,
        description=DESCRIPTION,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    models = sorted(BODY_MODELS, key=lambda model: model.__name__)
    _, bodies = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schemas = schema["components"]["schemas"]
    schemas.update(bodies.get("$defs", {}))
    for name in _FASTAPIS_OWN:
        schemas.pop(name, None)
    _describe_fields(schemas)
    for path in schema["paths"].values():
        for operation in path.values():
            _drop_fastapis_validation(operation["responses"])
            for answer in operation["responses"].values():
                _tell_problems_apart(answer)
                _describe(answer, schemas)
    return schema


def _describe_fields(schemas: dict[str, Any]) -> None:
    """A string beneath a field is its description.

    Read from the sources here: pydantic's `use_attribute_docstrings` does so at import, which took
    a third of the time in which the API starts.
    """
    for model in _models(BaseModel):
        schema = schemas.get(re.sub(r"[^\w.-]", "_", model.__name__))
        if schema is None:
            continue
        texts: dict[str, str] = {}
        for base in reversed(model.__mro__):
            texts |= _texts_beneath_fields(base.__module__).get(base.__name__, {})
        fields = schema.get("properties", {})
        for name in fields.keys() & texts.keys():
            fields[name].setdefault("description", texts[name])


def _models(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        if model.__module__.startswith("api."):
            yield model
        yield from _models(model)


@cache
def _texts_beneath_fields(module: str) -> dict[str, dict[str, str]]:
    """By class and field; of this package's modules."""
    if not module.startswith("api."):
        return {}
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            texts = found[node.name] = {}
            for field, text in zip(node.body, node.body[1:], strict=False):
                match field, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(words))),
                    ):
                        texts[name] = inspect.cleandoc(words)
    return found


def _drop_fastapis_validation(answers: dict[str, Any]) -> None:
    """What remains of it is of operations whose parameters can be any text."""
    of_422 = answers.get("422", {}).get("content", {}).get("application/json", {})
    if of_422.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
        del answers["422"]


def _tell_problems_apart(answer: dict[str, Any]) -> None:
    """A problem comes as application/problem+json, never as plain JSON."""
    content = answer.get("content", {})
    if MEDIA_TYPE in content and "application/json" in content:
        content[MEDIA_TYPE] = content.pop("application/json")


def _describe(answer: dict[str, Any], schemas: dict[str, Any]) -> None:
    """An answer without a description of its own has that of what it holds."""
    if answer["description"] != _DEFAULT_DESCRIPTION:
        return
    held = answer.get("content", {}).get("application/json", {}).get("schema", {})
    name = held.get("$ref", "").rpartition("/")[2]
    if name:
        answer["description"] = schemas[name].get("description", "One page of the list.")
    else:
        answer["description"] = "Done. There is nothing more to say."
