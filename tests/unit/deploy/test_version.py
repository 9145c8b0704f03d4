"""One version: what pyproject.toml says, everywhere else too."""

import shutil
from pathlib import Path

import pytest

from deploy import version
from deploy.docker import images
from tests.processes import PROJECT


def test_every_file_has_the_version_of_the_project() -> None:
    assert version.written() == {name: {images.version()} for name in version.PLACES}


def test_one_command_sets_it_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in version.PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    monkeypatch.setattr(version, "PROJECT", tmp_path)
    version.write("1.2.3rc1")
    assert version.written() == {name: {"1.2.3rc1"} for name in version.PLACES}
    for name in version.PLACES:
        before, after = ((root / name).read_text().splitlines() for root in (PROJECT, tmp_path))
        changed = [new for old, new in zip(before, after, strict=True) if old != new]
        assert all("1.2.3rc1" in line for line in changed), name
