"""One line into several jobs, and never into too many."""

import time

import pytest

from api.batches.errors import LineRefused
from api.batches.expansion import alternatives, expand


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
    assert alternatives(template, 100) == texts


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
        {"prompt": "{a|b}" * 500},
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


@pytest.mark.parametrize("text", ["}" * 4000, "{" * 8 + "|" * 3000, "{a|" * 7 + "}" * 3000])
def test_hostile_braces_end_soon(text: str) -> None:
    assert alternatives(text, 50_000)
