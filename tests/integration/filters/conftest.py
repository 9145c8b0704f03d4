"""An API and a worker with filters, as an operator sets them: a package's and the word list."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.core.settings import Settings
from tests.conftest import for_the_session
from tests.filters import install
from tests.processes import PATIENT, PROJECT, ApiProcess, WorkerProcess, free_port


@pytest.fixture(scope="session")
def denied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose text the toy filter refuses from when it is there."""
    return tmp_path_factory.mktemp("denied") / "text"


@pytest.fixture(scope="session")
def filtered_environment(
    environment: dict[str, str], denied: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The settings of the processes with filters."""
    folder = tmp_path_factory.mktemp("filters")
    words = folder / "words.txt"
    words.write_text("forbidden fruit\n")
    return environment | {
        "PYTHONPATH": f"{PROJECT}:{install(folder / 'package')}",
        "DARKROOM_MODELS_FILE": str(Path(__file__).with_name("models.toml")),
        "DARKROOM_FILTERS": "obedient,word_list",
        "DARKROOM_FILTER_WORDS": str(words),
        "DARKROOM_FILTER_DEADLINE": "PT15S",
        "TOY_DENIED": str(denied),
    }


@pytest.fixture(scope="session")
def filtered_api(
    settings: Settings,
    filtered_environment: dict[str, str],
    api_key: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiProcess]:
    """A running API with filters."""
    log = tmp_path_factory.mktemp("api") / "filtered.log"
    yield from for_the_session(
        ApiProcess(filtered_environment, free_port(), api_key, log, factory=PATIENT)
    )


@pytest.fixture(scope="session")
def filtered_worker(
    settings: Settings,
    filtered_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[WorkerProcess]:
    """A running generate worker with filters."""
    log = tmp_path_factory.mktemp("worker") / "filtered.log"
    yield from for_the_session(
        WorkerProcess(filtered_environment, ["generate", "--model", "seen"], log)
    )
