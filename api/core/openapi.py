"""The OpenAPI document: FastAPI's, with what it cannot know."""

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from api.core.bodies import BODY_MODELS
from api.core.error_catalogue import CATALOGUE
from api.core.errors import MEDIA_TYPE, Problem, ProblemDocument, problems_of, retold
from api.core.serialization import dependants
from shared.core.settings import darkroom_version

_REF = "#/components/schemas/{model}"

DESCRIPTION = """An asynchronous job queue for image generation with diffusion models.

1. **Authorize** with an API key (`make run` writes one to `.darkroom/env`).
2. **Submit** a job: `POST /v1/jobs` answers in milliseconds, with the seeds of its images.
3. **Follow** it: `GET /v1/jobs/{job_id}` (with `Prefer: wait=60` it waits), or its events.
4. **Read** its images: each has a URL, a receipt, and `reproduce`.

Errors are RFC 9457 problems with a stable `code`; `GET /problems/{code}` explains each.
Submissions with an `Idempotency-Key` can be repeated safely."""

TAGS = {
    "jobs": "Submit images to be made, follow them, cancel and retry.",
    "images": "Finished images: files, receipts, stars, making them again or larger.",
    "uploads": "Images to start from.",
    "models": "The models and LoRAs to choose from.",
    "batches": "Many jobs from one JSON list or one JSONL or CSV file, with results and exports.",
    "search": "Find images by meaning, by text or by an image.",
    "sessions": "Folders of jobs and images, made on first use.",
    "prompts": "Prompts worth trying.",
    "webhooks": "Signed events to your own URLs, and the log of their deliveries.",
    "keys": "API keys, their quotas and what they have used.",
    "openai": "OpenAI's image API in front of the same jobs.",
    "a1111": "The API of AUTOMATIC1111's web UI in front of the same jobs.",
    "huggingface": "Hugging Face's text-to-image API in front of the same jobs.",
    "workers": "For operators: the processes that make images.",
    "queues": "For operators: how much work waits.",
    "health": "Whether the service works, and where its parts are. Needs no key.",
}
"""In the order in which people need them."""

_PAGE = "One page of the list."
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
        version=darkroom_version(),
        description=DESCRIPTION,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    models = sorted(BODY_MODELS, key=lambda model: model.__name__)
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(one, "validation") for one in models]
    wanted.append((ProblemDocument, "serialization"))
    _, bodies = models_json_schema(wanted, ref_template=_REF)
    schemas = schema["components"]["schemas"]
    schemas.update(bodies.get("$defs", {}))
    for name in _FASTAPIS_OWN:
        schemas.pop(name, None)
    for name, document in schemas.items():
        if name.startswith("Page_"):
            document["description"] = _PAGE
    _describe_fields(schemas)
    for path in schema["paths"].values():
        for operation in path.values():
            # FastAPI's own 422 is of operations whose parameters can be any text.
            operation["responses"].pop("422", None)
            for answer in operation["responses"].values():
                _describe(answer, schemas)
    _describe_dependencies(app, schema["paths"])
    return schema


def _describe_dependencies(app: FastAPI, paths: dict[str, Any]) -> None:
    """Bodies and problems are those of everything that an operation depends on."""
    for route in iter_route_contexts(app.routes):
        if not isinstance(route.original_route, APIRoute) or not route.include_in_schema:
            continue
        calls = [one.call for one in dependants(route.dependant)]
        codes = [code for call in calls for code in problems_of(call)]
        path = str(route.path_format)
        if "{" in path:
            codes.append("not_found")
        for method in route.methods or ():
            operation = paths[path][method.lower()]
            operation["responses"].update(_problem_answers(codes, path))
            for call in calls:
                operation.update(getattr(call, "request_body", {}))


def _problem_answers(codes: Iterable[str], path: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=ProblemDocument.__name__)}
    answers: dict[str, Any] = {}
    for kind in (CATALOGUE[code] for code in dict.fromkeys(codes)):
        answer = answers.setdefault(
            str(retold(Problem(kind.code), path).status),
            {"description": "", "content": {MEDIA_TYPE: {"schema": schema}}},
        )
        answer["description"] = f"{answer['description']} `{kind.code}`: {kind.title}.".strip()
    return answers


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
    documented: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            texts = documented[node.name] = {}
            for field, text in zip(node.body, node.body[1:], strict=False):
                match field, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(words))),
                    ):
                        texts[name] = inspect.cleandoc(words)
    return documented


def _describe(answer: dict[str, Any], schemas: dict[str, Any]) -> None:
    """An answer without a description of its own has that of what it holds."""
    if answer["description"] != _DEFAULT_DESCRIPTION:
        return
    held = answer.get("content", {}).get("application/json", {}).get("schema", {})
    name = held.get("$ref", "").rpartition("/")[2]
    if name:
        answer["description"] = schemas[name].get("description", _PAGE)
    else:
        answer["description"] = "Done. There is nothing more to say."
