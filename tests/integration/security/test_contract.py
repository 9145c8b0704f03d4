"""A short fuzz of the API against its own OpenAPI document, as two tenants; `make fuzz` is long."""

from pathlib import Path

import pytest

from deploy.tenants import create_key
from shared.core.settings import Settings
from shared.core.tenants import RESOURCES
from tests.fuzz.contract import fuzz
from tests.processes import ApiProcess, WorkerProcess


@pytest.mark.parametrize(
    ("phases", "examples"),
    [
        ("fuzzing", 1),
        pytest.param("examples,fuzzing,stateful", 2, marks=pytest.mark.long),
    ],
)
def test_no_answer_is_undocumented_or_a_failure(
    *,
    phases: str,
    examples: int,
    api: ApiProcess,
    generate_worker: WorkerProcess,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """With a worker: some answers wait for an image."""
    url = settings.database_url.get_secret_value()
    one, two = (
        create_key(url, tenant=f"fuzz {name}", name=name, scopes=RESOURCES) for name in "ab"
    )
    found = fuzz(api, (one, two), tmp_path, phases=phases, examples=examples, seed=20261122)
    assert found.passed, found.report
    assert found.cases > 100
