"""The operator's pages lead somewhere: every link, and every command's module."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.processes import PROJECT

PAGES = [
    PROJECT / "docs" / f"{name}.md" for name in ("deploy", "operations", "scaling", "settings")
]
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


@EACH
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
        linked = (page.parent / target) if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), f"{target}#{anchor}"


@EACH
def test_modules_of_commands_exist(page: Path) -> None:
    for module in re.findall(r"python3? -m ([\w.]+)", page.read_text("utf-8")):
        assert find_spec(module) is not None, module


@EACH
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:deploy|tests|worker|shared)/[\w./-]+)`", page.read_text("utf-8"))
    for path in named:
        made_later = path in ("deploy/secrets",)
        assert made_later or (PROJECT / path).exists(), path


EVERY_PAGE = [PROJECT / "README.md", PROJECT / "client/README.md", *PROJECT.glob("docs/**/*.md")]


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(PROJECT)))
def test_commands_can_be_pasted_where_the_environment_file_was_read(page: Path) -> None:
    text = page.read_text("utf-8")
    assert re.findall(r"\$\{?(?:API|KEY|URL)\b.*", text) == []
    assert re.findall(r"git clone .*….*", text) == []


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}
