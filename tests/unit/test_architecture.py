"""Rules of the house that no linter knows."""

import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "worker", "shared", "migrations", "deploy", "darkroom_server")


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in (PROJECT / package).rglob("*.py")]


def test_only_the_database_changes_jobs() -> None:
    changes_jobs = re.compile(
        r"\b(?:update|delete)\(\s*Job\s*\)|\bUPDATE\s+jobs\b|\bDELETE\s+FROM\s+jobs\b"
    )
    places = {
        str(path.parent.relative_to(PROJECT))
        for path in sources()
        if changes_jobs.search(path.read_text("utf-8"))
    }
    assert places == {"shared/jobs/queries"}


def test_few_modules_reach_past_the_wall_between_tenants() -> None:
    opens = re.compile(r"\.(?:transaction|_session)\(")
    places = {
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "api").rglob("*.py")
        if opens.search(path.read_text("utf-8"))
    }
    assert places == {
        "api/context.py",  # tenant_transaction, which puts up the wall
        "api/core/auth.py",  # whose key is it?
        "api/admin/keys.py",  # an operator makes a key for another tenant
        "api/search/embedding.py",  # which models have embedded prompts
        "api/jobs/followers.py",  # every job that is waited for, whether it has ended
        "api/admin/service.py",  # the operator's: all tenants' jobs
        "api/admin/workers.py",  # the operator's: drains
        "api/jobs/admission.py",  # all tenants' work that waits
        "api/core/health.py",  # is Postgres there?
    }


def test_kept_statements_are_compiled_before_threads_share_them() -> None:
    """`functools` would hand them out as they were built (see `shared.core.database`)."""
    keeps = re.compile(r"^@(?:functools\.)?(?:lru_)?cache\b", re.MULTILINE)
    builds = re.compile(r"^from sqlalchemy\b", re.MULTILINE)
    places = {
        str(path.relative_to(PROJECT))
        for path in sources()
        if keeps.search(text := path.read_text("utf-8")) and builds.search(text)
    }
    # Pieces of SQL text, which nothing is worked out of.
    assert places == {"shared/webhooks/outbox.py", "shared/jobs/queries/accept.py"}


@lru_cache
def imports_of(module: str) -> frozenset[str]:
    """All that is imported where this module is."""
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert module in done.stdout.split()
    return frozenset(done.stdout.split())


def test_the_api_starts_without_model_code() -> None:
    heavy = {"torch", "diffusers", "transformers", "sentence_transformers", "numpy", "mcp"}
    assert imports_of("api.app") & heavy == set()


TRACERS = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "shared.core.tracing")
"""Other parts of OpenTelemetry come with FastAPI and redis-py, which look for it by themselves."""


@pytest.mark.parametrize("module", ["api.app", "worker.cpu"])
def test_nobody_imports_a_tracer(module: str) -> None:
    assert [name for name in imports_of(module) if name.startswith(TRACERS)] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(PROJECT))
        for path in sources()
        if not path.read_text("utf-8").lstrip().startswith('"""')
    ]
    assert silent == []
