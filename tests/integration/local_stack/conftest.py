"""Homes and servers for the tests of the local stack, apart from those of the other tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.servers import EmbeddedServers


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """Running servers that one module shares."""
    home = tmp_path_factory.mktemp("home")
    with EmbeddedServers(home, durable=False) as running:
        yield running


@pytest.fixture(autouse=True)
def no_ports_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ports of a developer's own stack must not reach these tests."""
    for part in ("", "PLAYGROUND_", "POSTGRES_", "REDIS_", "S3_"):
        monkeypatch.delenv(f"DARKROOM_{part}PORT", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "home"
