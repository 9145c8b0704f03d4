"""Fuzz a running API against its own OpenAPI document with schemathesis, as two tenants."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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
    document.write_text(api.http.get("/openapi.json").text)
    config = folder / "schemathesis.toml"
    config.write_text(_CONFIG.format(users=users))
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)),
            *("run", str(document), "--url", api.url),
            *("--phases", phases, "--checks", ",".join(CHECKS)),
            *("--max-examples", str(examples), "--seed", str(seed), "--workers", "2"),
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


def _user(name: str, key: str) -> dict[str, object]:
    header = {"name": "Authorization", "value": f"Bearer {key}"}
    return {"name": name, "fixedHeaders": [header]}
