"""Every page leads somewhere: each link, each command's module, each file it names."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from api.core.error_catalogue import CATALOGUE
from deploy.error_reference import CLIENT, PAGE, class_of, client_module, page
from tests.processes import PROJECT

MADE_BY_OPERATORS = {
    *("deploy/.env", "deploy/extra.env", "deploy/secrets"),
    "deploy/files/alertmanagers.yaml",
}
PAGES = sorted(
    [*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")]
    + [PROJECT / name for name in ("client/README.md", "examples/README.md")]
)
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


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
    if page.parent.name == "adr":
        pytest.skip("a decision may name what it replaced")
    named = re.findall(r"`((?:deploy|tests|worker|shared)/[\w./-]+)`", page.read_text("utf-8"))
    for path in named:
        assert path in MADE_BY_OPERATORS or (PROJECT / path).exists(), path


@EACH
def test_commands_can_be_pasted_where_the_environment_file_was_read(page: Path) -> None:
    text = page.read_text("utf-8")
    assert re.findall(r"\$\{?(?:API|KEY|URL)\b.*", text) == []
    assert re.findall(r"git clone .*….*", text) == []


def test_the_page_of_the_demo_model_is_what_its_evaluation_writes() -> None:
    template = re.escape((PROJECT / "deploy/demo_model/report.md").read_text("utf-8"))
    page = (PROJECT / "docs/demo-model.md").read_text("utf-8")
    assert re.fullmatch(re.sub(r"\\\$\w+", "(?s:.+)", template), page)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


# --- docs/errors.md and the client's exceptions say what the error catalogues say ---


@pytest.mark.parametrize(("path", "text"), [(PAGE, page()), (CLIENT, client_module())])
def test_what_is_generated_is_not_stale(path: Path, text: str) -> None:
    assert path.read_text("utf-8") == text, "run python -m deploy.error_reference"


def test_each_code_is_one_row_and_one_class() -> None:
    assert [page().count(f"| `{code}` | {each.status} |") for code, each in CATALOGUE.items()] == (
        [1] * len(CATALOGUE)
    )
    assert len(set(map(class_of, CATALOGUE.values()))) == len(CATALOGUE)


def test_busy_and_limited_requests_can_be_retried() -> None:
    """Except where only a deletion helps."""
    never = {
        code for code, each in CATALOGUE.items() if each.status in (429, 503) and not each.retryable
    }
    assert never == {"upload_bytes_exceeded"}
