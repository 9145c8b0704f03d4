"""One line into several jobs, and never into too many."""

import contextlib
import itertools
import time
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest

from api.batches.expansion import Expander, TemplateReader, alternatives
from api.batches.file_formats import MAX_LINE_BYTES, MAX_LINES
from api.batches.report import FileRefused, LineRefused


def texts_of(template: str) -> list[str]:
    return list(alternatives(TemplateReader().read(template, "prompt")))


def expand(fields: dict[str, Any], *, templates: bool, room: int) -> list[dict[str, Any]]:
    expansion = Expander(templates=templates, room=room).expand(fields)
    jobs = list(expansion.jobs)
    assert len(jobs) == expansion.count
    return jobs


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("a hat", ["a hat"]),
        ("a {red|blue} hat", ["a red hat", "a blue hat"]),
        ("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("{|very }old", ["old", "very old"]),
        ("{a}", ["{a}"]),
        ("a | b", ["a | b"]),
        ("} {a|b", ["} {a|b"]),
        ("}{a|b}}", ["}a}", "}b}"]),
        (r"\{a\|b\}", ["{a|b}"]),
        (r"{a\|b|c}", ["a|b", "c"]),
        ("{a {b} c}", ["{a {b} c}"]),
        ("{x {a|b} y}", ["{x a y}", "{x b y}"]),
    ],
)
def test_alternatives_of_a_text(template: str, texts: list[str]) -> None:
    assert texts_of(template) == texts


def test_a_line_without_lists_is_itself() -> None:
    fields = {"prompt": "a hat", "steps": 3}
    assert expand(fields, templates=True, room=1) == [fields]


def test_a_matrix_is_a_product_and_zip_goes_in_step() -> None:
    line = {
        "prompt": "x",
        "zip": {"width": [64, 128], "height": [128, 64]},
        "matrix": {"steps": [1, 2], "seed": [7, 8, 9]},
    }
    jobs = expand(line, templates=True, room=12)
    assert len(jobs) == 12
    assert {(job["width"], job["height"]) for job in jobs} == {(64, 128), (128, 64)}
    assert [job["seed"] for job in jobs[:6]] == [7, 8, 9, 7, 8, 9]
    assert all("matrix" not in job and "zip" not in job for job in jobs)


def test_templates_inside_a_matrix_are_expanded_too() -> None:
    line = {"matrix": {"prompt": ["a {b|c}", "d"]}}
    jobs = expand(line, templates=True, room=9)
    assert [job["prompt"] for job in jobs] == ["a b", "a c", "d"]


def test_without_templates_braces_are_text() -> None:
    line = {"prompt": "{a|b}"}
    assert expand(line, templates=False, room=9) == [line]


@pytest.mark.parametrize(
    ("line", "code", "pointer"),
    [
        ({"matrix": [1]}, "dict_type", "/matrix"),
        ({"matrix": {"seed": 7}}, "list_type", "/matrix/seed"),
        ({"matrix": {"seed": []}}, "list_type", "/matrix/seed"),
        ({"matrix": {"custom_id": ["a"]}}, "not_expandable", "/matrix/custom_id"),
        ({"zip": {"seed": [1, 2], "steps": [3]}}, "zip_lengths", "/zip"),
        ({"prompt": "{" * 9 + "a|b" + "}" * 9}, "template_too_deep", "/prompt"),
        ({"negative_prompt": "{" * 9 + "a}"}, "template_too_deep", "/negative_prompt"),
        ({"prompt": "{a|b}" + "x" * 16_000}, "too_long", "/prompt"),
        ({"negative_prompt": "{" + "|x" * MAX_LINE_BYTES}, "too_long", "/negative_prompt"),
    ],
)
def test_malformed_lists_are_named(line: dict[str, object], code: str, pointer: str) -> None:
    with pytest.raises(LineRefused) as refused:
        expand(line, templates=True, room=100)
    [error] = refused.value.errors
    assert (error.code, error.pointer) == (code, pointer)


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "x", "matrix": {name: list(range(10_000)) for name in ("seed", "steps")}},
        {"prompt": "{a|b}" * 3000},
        {"prompt": "{a|b}" * 9, "negative_prompt": "{a|b}" * 9},
        {"matrix": {"prompt": ["{a|b|c|d|e|f|g|h}"] * 13}},
    ],
)
def test_too_many_jobs_are_counted_but_never_made(line: dict[str, object]) -> None:
    started = time.process_time()
    with pytest.raises(LineRefused) as refused:
        expand(line, templates=True, room=100)
    assert refused.value.errors[0].code == "too_many_jobs"
    assert time.process_time() - started < 5  # making 2^500 of them takes for ever


@pytest.mark.long
@pytest.mark.parametrize(
    "text",
    [
        "}" * 4000,
        "{" * 8 + "|" * 3000,
        "{a|" * 7 + "}" * 3000,
        "{|}" * (MAX_LINE_BYTES // 3),
        "x{" + "}" * (MAX_LINE_BYTES - 2),
        "{" + "|" * (MAX_LINE_BYTES - 2) + "}",
    ],
)
def test_hostile_braces_end_soon_and_take_little(text: str) -> None:
    """Within a line of 256 kB a template can have as many braces as it has characters."""
    started = time.process_time()
    tracemalloc.start()
    with contextlib.suppress(LineRefused):
        expansion = Expander(templates=True).expand({"prompt": text})
        assert sum(1 for _ in expansion.jobs) == expansion.count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 1024 * 1024
    assert time.process_time() - started < 60


def test_a_text_too_long_for_a_prompt_is_not_copied_for_each_alternative() -> None:
    """A line of 255 bytes, gzipped, took gigabytes."""
    nested = "{" + "|".join(["{" + "|" * 99 + "}"] * 400) + "}"
    line = {"prompt": nested + "x" * 150_000}
    tracemalloc.start()
    with pytest.raises(LineRefused) as refused:
        list(Expander(templates=True).expand(line).jobs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.errors[0].code == "too_long"
    assert peak < 32 * 1024 * 1024


def test_jobs_are_made_one_by_one() -> None:
    """All of them at once would be 200 MB."""
    line = {"prompt": "x" * 3990 + "{0|1|2|3|4|5|6|7|8|9}" * 4}
    tracemalloc.start()
    expansion = Expander(templates=True).expand(line)
    seen = {job["prompt"][-4:] for job in expansion.jobs}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert expansion.count == len(seen) == 10_000
    assert peak < 8 * 1024 * 1024


def refuse_all(expander: Expander, lines: Iterable[dict[str, Any]]) -> None:
    """Expand lines of which each is refused."""
    for line in lines:
        with pytest.raises(LineRefused):
            expander.expand(line)


def test_refused_lines_cannot_cost_without_end() -> None:
    """Each line would be refused only after tens of thousands of jobs of it were counted."""
    numbers = list(range(200))
    line = {"prompt": "{a|b}", "matrix": {"seed": numbers, "steps": numbers}}
    with pytest.raises(FileRefused) as stopped:
        refuse_all(Expander(templates=True), itertools.repeat(line, MAX_LINES))
    assert stopped.value.code == "too_many_jobs"


@pytest.mark.long
def test_templates_cannot_cost_without_end() -> None:
    braces = "{|}" * (MAX_LINE_BYTES // 4)
    lines = ({"prompt": f"{number}{{a|b}}{braces}"} for number in range(MAX_LINES))
    with pytest.raises(FileRefused) as stopped:
        refuse_all(Expander(templates=True), lines)
    assert stopped.value.code == "too_large"


def test_the_same_template_is_read_once() -> None:
    expander = Expander(templates=True)
    line = {"prompt": "{a|b}" + "x" * 3000, "negative_prompt": "{c|d}" + "x" * 3000}
    # Read anew for every line, these would be refused as too much work.
    assert {expander.expand(line).count for _ in range(2000)} == {4}
