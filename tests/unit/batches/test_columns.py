"""A table of one's own: which column becomes which field, and what goes into the template."""

import io
import json
from typing import Any

import pytest
from pydantic import ValidationError

from api.batches.columns import Columns, Mapped, fill, placeholders
from api.batches.expansion import Expander
from api.batches.file_formats import FileFormat, Line, read_file
from api.batches.report import FileRefused, LineRefused
from api.batches.schemas import BatchOptions


def read(
    content: str,
    template: str | None = None,
    columns: dict[str, Mapped] | None = None,
    form: FileFormat = "csv",
    *,
    alternatives: bool = True,
) -> list[Line]:
    mapping = Columns(template, columns or {}, alternatives=alternatives)
    return list(read_file(io.BytesIO(content.encode()), form, mapping))


def prompts(line: Line, *, alternatives: bool = True) -> list[str]:
    assert line.fields is not None, line.refusal
    jobs = Expander(templates=alternatives).expand(line.fields).jobs
    return [fill(job["prompt"], line.values) for job in jobs]


def fault(content: str, *options: Any, form: FileFormat = "csv") -> tuple[str, str]:
    if form == "csv":
        with pytest.raises(FileRefused) as refused:
            read(content, *options)
        assert refused.value.line == 1
        return refused.value.code, refused.value.message
    [line] = read(content, *options, form=form)
    assert line.refusal is not None
    return line.refusal.errors[0].code, line.refusal.errors[0].message


@pytest.mark.parametrize(
    "value",
    ["{a|b}", "a|b", "\\{a|b\\}", "end\\", "{", "}", "\\", "{hue}", "红 {x|y}", "$1 \\g<0>"],
)
@pytest.mark.parametrize("template", ["{name}", "{name}{, new|}", "{x {name}|y} \\| {name}"])
def test_values_are_taken_literally(value: str, template: str) -> None:
    [line] = read(json.dumps({"name": value}), template, form="jsonl")
    expected = {
        "{name}": [value],
        "{name}{, new|}": [f"{value}, new", value],
        "{x {name}|y} \\| {name}": [f"x {value} | {value}", f"y | {value}"],
    }
    assert prompts(line) == expected[template]


def test_escapes_and_alternatives_of_the_template() -> None:
    table = "name,hue\nhat,red\n"
    [line] = read(table, "a {big|small} { hue } {name} \\{name\\}")
    assert prompts(line) == ["a big red hat {name}", "a small red hat {name}"]
    [line] = read(table, "a {big|small} {hue} \\{name\\}", alternatives=False)
    assert prompts(line, alternatives=False) == ["a {big|small} red {name}"]
    [line] = read(table, "{hue} \\| {name} \\}")
    assert prompts(line) == ["red | hat }"]
    assert placeholders("{b} {a} {b} {c|d} \\{e\\}") == ["b", "a"]


def test_columns_become_fields_metadata_or_nothing() -> None:
    [line] = read(
        "sku,descr,price,seed,model,note,,\nH-1,a hat,7,5,X-100,n,,\n",
        None,
        {
            "sku": ["custom_id", "metadata.sku"],
            "descr": "prompt",
            "price": "metadata.price",
            "model": None,
        },
    )
    assert line.fields == {
        "custom_id": "H-1",
        "metadata": {"sku": "H-1", "price": "7"},
        "prompt": "a hat",
        "seed": 5,
    }
    [line] = read(
        '{"n": 7, "ok": true, "gone": null, "rest": [1], "steps": 3}',
        "{n} hats",
        {"n": "metadata.n", "ok": "previews", "gone": "seed"},
        form="jsonl",
    )
    assert line.fields is not None
    assert line.fields | {"prompt": ""} == {
        "metadata": {"n": "7"},
        "previews": True,
        "steps": 3,
        "prompt": "",
    }
    assert prompts(line) == ["7 hats"]


def test_a_prompt_column_may_be_part_of_the_template() -> None:
    [line] = read("prompt\na hat\n", "photo of {prompt}")
    assert prompts(line) == ["photo of a hat"]
    [line] = read('"a hat"', "photo of {prompt}", form="jsonl")
    assert prompts(line) == ["photo of a hat"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_does_not_fit_names_the_columns(form: FileFormat) -> None:
    def table(**row: str) -> str:
        return f"{','.join(row)}\n{','.join(row.values())}\n" if form == "csv" else json.dumps(row)

    row = table(product="hat", colour="red")
    code, message = fault(row, "a {color} hat", form=form)
    assert code == "unknown_placeholder"
    assert "Did you mean colour?" in message
    assert "product, colour" in message
    code, message = fault(row, None, {"produkt": "prompt"}, form=form)
    assert code == "missing_column"
    assert "Did you mean product?" in message
    message = fault(table(**{"Product Name": "hat"}), "a {PRODUCT NAM}", form=form)[1]
    assert "Did you mean Product Name?" in message
    row = table(descr="a hat", prompt="a cap", name="hat")
    assert fault(row, None, {"descr": "prompt"}, form=form)[0] == "duplicate_field"
    assert fault(row, "a {name}", form=form)[0] == "duplicate_field"


def test_an_empty_value_refuses_its_line_alone() -> None:
    lines = read("name,hue\nhat,red\ncap, \nbow\n", "a {hue} {name}")
    codes = [line.refusal and line.refusal.errors[0].code for line in lines]
    assert codes == [None, "empty_placeholder", "empty_placeholder"]
    [line] = read('{"name": ["a"]}', "a {name}", form="jsonl")
    assert line.refusal is not None
    assert line.refusal.errors[0].code == "string_type"


def test_a_table_may_have_another_delimiter() -> None:
    [line] = read("product;colour\nhat;red, blue\n", "a {colour} {product}")
    assert line.values == ("red, blue", "hat")


def test_a_long_value_is_not_multiplied() -> None:
    [line] = read(json.dumps({"x": "v" * 200_000}), "{x}" * 1000, form="jsonl")
    assert line.fields is not None
    with pytest.raises(LineRefused):
        fill(line.fields["prompt"], line.values)


def test_only_the_first_faults_list_the_columns() -> None:
    lines = read('{"name": "hat"}\n' * 1100, "a {nam}", form="jsonl")
    errors = [line.refusal.errors[0] for line in lines if line.refusal]
    assert {error.code for error in errors} == {"unknown_placeholder"}
    assert len(errors) == 1100
    assert sum("The columns are: name." in error.message for error in errors) == 1000


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"template": "a red hat"}, "no_placeholder"),
        ({"template": "".join(f"{{c{n}}}" for n in range(101))}, "too_many_placeholders"),
        ({"columns": {"sku": "custom_idd"}}, "unknown_field"),
        ({"columns": {"sku": "metadata."}}, "unknown_field"),
        ({"columns": {"a": "seed", "b": "seed"}}, "duplicate_field"),
        ({"columns": {"a": "seed", " a": "steps"}}, "duplicate_column"),
        ({"template": "a {b}", "columns": {"c": "prompt"}}, "duplicate_field"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], code: str) -> None:
    with pytest.raises(ValidationError) as refused:
        BatchOptions.model_validate(options)
    [error] = refused.value.errors()
    assert getattr(error["ctx"]["error"], "code", None) == code


def test_metadata_that_is_no_object_stands_beside_a_key_of_it() -> None:
    [line] = read_file(io.BytesIO(b"prompt,metadata,metadata.team\na,text,red\n"), "csv")
    assert line.fields == {"prompt": "a", "metadata": "text"}
