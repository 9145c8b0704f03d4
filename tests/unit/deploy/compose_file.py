"""Reads deploy/compose.yaml as Compose does: variables put in, anchors merged."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tests.processes import PROJECT

COMPOSE = PROJECT / "deploy" / "compose.yaml"
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<operator>:?[-?])(?P<word>[^}]*))?\})"
)


class RequiredVariable(Exception):
    """`${NAME:?…}` and there is no such variable."""


def load_compose(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The document with `variables` for the environment.

    Raises:
        RequiredVariable: one that the file demands is missing.
    """
    return dict(_interpolated(yaml.safe_load(COMPOSE.read_text("utf-8")), variables or {}))


def secrets_of(service: Mapping[str, Any]) -> dict[str, str]:
    """What a service finds in /run/secrets, and the secrets of the document that they are."""
    given = (
        {"source": each, "target": each} if isinstance(each, str) else each
        for each in service.get("secrets", ())
    )
    return {each["target"]: each["source"] for each in given}


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        # Without a value: passed if it is set.
        given = {
            name: variables.get(name) if part is None else part for name, part in value.items()
        }
        return {
            name: _interpolated(part, variables) for name, part in given.items() if part is not None
        }
    if isinstance(value, list):
        return [_interpolated(part, variables) for part in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: _one(found, variables), value)
    return value


def _one(found: re.Match[str], variables: Mapping[str, str]) -> str:
    if found["dollar"]:
        return "$"
    name, operator, word = found["name"], found["operator"] or "", found["word"] or ""
    given = variables.get(name)
    missing = not given if operator.startswith(":") else given is None
    if missing and operator.endswith("?"):
        raise RequiredVariable(f"{name}: {word}")
    return word if missing else given or ""
