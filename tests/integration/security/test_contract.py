"""A short fuzz of the API against its own OpenAPI document, as two tenants; `make fuzz` is long."""

from pathlib import Path

from deploy.tenants import create_key
from shared.core.settings import Settings
from shared.core.tenants import RESOURCES
from tests.fuzz.contract import fuzz
from tests.processes import ApiProcess, WorkerProcess


def test_no_answer_is_undocumented_or_a_failure(
    api: ApiProcess, cpu_worker: WorkerProcess, settings: Settings, tmp_path: Path
) -> None:
    url = settings.database_url.get_secret_value()
    one, two = (
        create_key(url, tenant=f"fuzz {name}", name=name, scopes=RESOURCES) for name in "ab"
    )
    found = fuzz(
        api, (one, two), tmp_path, phases="examples,fuzzing,stateful", examples=2, seed=20261122
    )
    assert found.passed, found.report
    assert found.cases > 100
