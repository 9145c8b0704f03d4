"""docs/openapi.json is the API's own document."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.openapi_document import PAGE, document


@pytest.fixture(scope="module")
def made() -> str:
    return document()


@pytest.fixture(scope="module")
def described(made: str) -> dict[str, Any]:
    return json.loads(made)


def test_the_document_is_not_stale(made: str) -> None:
    assert PAGE.read_text("utf-8") == made, "run python -m deploy.openapi_document"


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def test_every_field_is_described(described: dict[str, Any]) -> None:
    missing = [
        f"{name}.{field}"
        for name, schema in described["components"]["schemas"].items()
        for field, facts in schema.get("properties", {}).items()
        if not facts.get("description")
    ]
    assert missing == [], "write a string beneath the field, or Field(description=…)"
    schemas = described["components"]["schemas"]
    assert [name for name, schema in schemas.items() if not schema.get("description")] == []


def test_limits_are_named_as_json_schema_names_them(described: dict[str, Any]) -> None:
    names = {"ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length"}

    def misnamed(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (f"{path}/{name}" for name in names & node.keys())
            for name, value in node.items():
                yield from misnamed(value, f"{path}/{name}")

    assert list(misnamed(described["components"]["schemas"], "")) == []
    assert "multipleOf" in str(described["components"]["schemas"]["JobSubmission"])


def test_every_parameter_header_and_form_field_is_described(described: dict[str, Any]) -> None:
    missing = []
    for operation in operations(described):
        parts = {part["name"]: part for part in operation.get("parameters", [])}
        for answer in operation["responses"].values():
            parts |= answer.get("headers", {})
        for content in operation.get("requestBody", {}).get("content", {}).values():
            parts |= content["schema"].get("properties", {})
        missing += [
            f"{operation['operationId']}: {name}"
            for name, facts in parts.items()
            if not facts.get("description")
        ]
    assert missing == []


def test_every_operation_answer_and_tag_is_described(described: dict[str, Any]) -> None:
    tags = {tag["name"]: tag["description"] for tag in described["tags"]}
    for operation in operations(described):
        name = operation["operationId"]
        assert operation.get("summary"), name
        assert operation.get("description"), name
        assert all(tags.get(tag) for tag in operation["tags"]), name
        for status, answer in operation["responses"].items():
            default = answer["description"] in ("", "Successful Response", "Validation Error")
            assert not default, f"{name}: {status}"


def test_refusals_are_problems_in_every_operation(described: dict[str, Any]) -> None:
    for operation in operations(described):
        for status, answer in operation["responses"].items():
            if status >= "400":
                media_types = set(answer["content"])
                assert media_types == {"application/problem+json"}, (operation, status)
    assert "HTTPValidationError" not in described["components"]["schemas"]


def test_every_operation_with_a_key_says_that_it_refuses_unknown_parameters(
    described: dict[str, Any],
) -> None:
    for operation in operations(described):
        assert bool(operation.get("security")) == ("401" in operation["responses"])
        if not {"openai", "a1111"} & set(operation["tags"]):  # their clients add parameters
            assert bool(operation.get("security")) == ("422" in operation["responses"])
