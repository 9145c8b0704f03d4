"""Fuzz a running API against its own documents with schemathesis, as two tenants."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import PROJECT, ApiProcess

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "use_after_free",
    "ignored_auth",
    "object_level_authorization",
)
"""All that can be held against any API. Left out are `ensure_resource_availability`: deleting a
session deletes its jobs, which it cannot know; and `positive_data_acceptance` and
`negative_data_rejection`: rules between fields (a seed or seeds, a model's largest size) are not
expressible in the schema, and a body with a wrong content type is refused for that, not as a body.
"""

_CONFIG = """
[generation]
database = "none"

# Answers that wait for work to be done would hold the run for a minute each.
[parameters]
"header.prefer" = "wait=0"
"query.follow" = false

[auth.wfc]
path = "{users}"
peers = ["one", "two"]
"""
_EVENT_STREAM = "jobs.events"
"""A stream that ends with its job, not with its request: schemathesis would wait."""


@dataclass(frozen=True)
class Findings:
    """What schemathesis said."""

    cases: int
    passed: bool
    report: str


def fuzz(
    api: ApiProcess, keys: tuple[str, str], folder: Path, *, phases: str, examples: int, seed: int
) -> Findings:
    """Run schemathesis' phases with at most `examples` cases for an operation in each.

    Both tenants' keys may be revoked by what it sends.
    """
    users = folder / "users.json"
    users.write_text(json.dumps({"auth": [_user("one", keys[0]), _user("two", keys[1])]}))
    document = folder / "openapi.json"
    document.write_text(json.dumps(_with_mcp(api.http.get("/openapi.json").json(), api)))
    config = folder / "schemathesis.toml"
    config.write_text(_CONFIG.format(users=users))
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)),
            *("run", str(document), "--url", api.url),
            *("--phases", phases, "--checks", ",".join(CHECKS)),
            # One thread: before 3.11.8, `ast.parse` in two at once can fail (CPython 106905).
            *("--max-examples", str(examples), "--seed", str(seed), "--workers", "1"),
            *("--exclude-operation-id", _EVENT_STREAM, "--exclude-operation-id", "keys.revoke"),
            *("--request-timeout", "70", "--no-color", "--continue-on-failure", "--no-shrink"),
            *("--suppress-health-check", "all", "--warnings", "off", "--max-redirects", "0"),
        ],
        cwd=folder,
        env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    report = done.stdout + done.stderr
    counted = re.search(r"(\d[\d,]*) generated", report)
    cases = int(counted[1].replace(",", "")) if counted else 0
    return Findings(cases, done.returncode == 0, report)


def _with_mcp(document: dict[str, Any], api: ApiProcess) -> dict[str, Any]:
    """The document with `/mcp`, whose messages MCP describes in its own way: a call of each tool
    with arguments as its schema has them, and what reads resources and tasks by name."""
    kinds = "application/json, text/event-stream"
    header = {"name": "Accept", "in": "header", "required": True, "schema": {"const": kinds}}
    listed = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    answer = api.http.post("/mcp", json=listed, headers={"Accept": kinds})
    messages = []
    for tool in answer.json()["result"]["tools"]:
        name, schema = tool["name"], dict(tool["inputSchema"])
        for part, described in _moved(schema.pop("$defs", {}), name).items():
            document["components"]["schemas"][f"mcp.{name}.{part}"] = described
        schema = _moved(schema, name)
        if "wait_seconds" in schema["properties"]:
            schema["properties"]["wait_seconds"] = {"const": 0}
        messages.append(_message("tools/call", name={"const": name}, arguments=schema))
    text = {"type": "string"}
    uri = {"type": "string", "pattern": r"^darkroom://(images|jobs|models)/[\s\S]{0,60}$"}
    messages += [
        *(_message("resources/read", uri=described) for described in (text, uri)),
        *(_message(f"tasks/{verb}", taskId=text) for verb in ("get", "update", "cancel")),
        _message("resources/list", cursor=text),
    ]
    body = {"application/json": {"schema": {"anyOf": messages}}}
    document["paths"]["/mcp"] = {
        "post": {
            "operationId": "mcp",
            "parameters": [header],
            "requestBody": {"required": True, "content": body},
            "responses": {
                "default": {
                    "description": "An answer.",
                    "content": {"application/json": {}, "text/event-stream": {}},
                }
            },
            "security": document["paths"]["/v1/jobs"]["post"]["security"],
        }
    }
    return document


def _moved(schema: dict[str, Any], tool: str) -> dict[str, Any]:
    """With references to where the document has what a tool's schema defines."""
    text = json.dumps(schema).replace("#/$defs/", f"#/components/schemas/mcp.{tool}.")
    moved: dict[str, Any] = json.loads(text)
    return moved


def _message(method: str, **params: Any) -> dict[str, Any]:
    needed = {"type": "object", "required": [*params], "properties": params}
    properties = {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": "integer"},
        "method": {"const": method},
        "params": needed,
    }
    return {"type": "object", "required": [*properties], "properties": properties}


def _user(name: str, key: str) -> dict[str, object]:
    header = {"name": "Authorization", "value": f"Bearer {key}"}
    return {"name": name, "fixedHeaders": [header]}
