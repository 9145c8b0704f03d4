"""`make docs`: each page is reached, each diagram drawn, each link leads somewhere, offline."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
from mkdocs.config import load_config

from deploy.site import DIAGRAM, TAKEN_IN, drawing
from tests.processes import PROJECT


def test_navigation_names_every_page() -> None:
    docs = PROJECT / "docs"
    pages = {str(page.relative_to(docs)) for page in docs.glob("**/*.md")}
    config = load_config(str(PROJECT / "mkdocs.yml"))
    assert sorted(_pages(config.nav)) == sorted({"index.md", "api.md", *TAKEN_IN, *pages})


def test_every_diagram_is_drawn() -> None:
    for page in (PROJECT / "docs").glob("**/*.md"):
        for source in DIAGRAM.findall(page.read_text("utf-8")):
            assert drawing(source).is_file(), f"{page.name}: run python -m deploy.site"


@pytest.mark.long
def test_it_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=PROJECT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    pages = list(tmp_path.glob("**/*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img)\b[^>]*https?://[^>]*>", page.read_text("utf-8"))
        assert loaded == [], page.name
    api = (tmp_path / "api.html").read_text("utf-8")
    assert "POST /v1/jobs" in api
    assert 'id="schema-jobsubmission"' in api


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [page for child in children for page in _pages(child)]
