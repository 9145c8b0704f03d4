"""The tab Batches: check a file, start it, and follow the batches of this key."""

from typing import Any

import streamlit as st

from darkroom.playground import batch_card, dropzone, notices, words
from darkroom.playground.connection import connect
from darkroom.types.batches import BatchDryRun

_FILE = "batch-file"
_SKIP = "batch-skip"
_TEMPLATE = "batch-template"
_COLUMNS = "batch-columns"
_CHECKED = "batch-checked"
_SHOWN = 10
_EXAMPLE = """{"custom_id": "hat-1", "prompt": "a red hat", "seed": 7}
{"custom_id": "hat-2", "prompt": "a {green|blue} hat", "num_images": 2}
"a yellow scarf"
"""


def show(session_id: str) -> None:
    """Draws the tab."""
    _show_upload(session_id)
    with notices.in_plain_words():
        listed = connect().batches.list(page_size=_SHOWN).take(_SHOWN)
        for place, batch in enumerate(listed):
            batch_card.show(batch, expanded=place == 0)
        if not listed:
            st.info("No batch was made yet.", icon=":material/stacks:")


def _show_upload(session_id: str) -> None:
    file = dropzone.show(
        "Prompts, a line each: JSONL or CSV, gzipped or not",
        _FILE,
        ["jsonl", "csv", "gz"],
        most_megabytes=100,
    )
    if file is None:
        with st.expander("What such a file looks like", icon=":material/help:"):
            st.code(_EXAMPLE, language="json")
            st.caption(
                "A line has the fields of a job; `{a|b}` stands for several prompts. CSV has the "
                "fields' names in its first line. Up to 50,000 lines and jobs."
            )
        return
    skip = st.toggle("Leave out lines that break a rule", key=_SKIP)
    options: dict[str, Any] = {
        "session_id": session_id,
        "on_error": "skip" if skip else "reject",
        "format": "csv" if ".csv" in file.name.lower() else "jsonl",
        **_table_options(),
    }
    with notices.in_plain_words():
        report = _check(file.file_id, file.getvalue(), options)
        _show_report(report)
        st.button(
            f"Start {words.count(report.jobs, 'job')}",
            type="primary",
            icon=":material/play_arrow:",
            disabled=not report.accepted or not report.jobs,
            key="batch-start",
            on_click=_start,
            args=(file.getvalue(), options),
        )


def _table_options() -> dict[str, Any]:
    """What makes jobs of a table with columns of its own; empty without."""
    with st.expander("A table with columns of its own", icon=":material/table:"):
        template = st.text_input(
            "Prompt of every line", key=_TEMPLATE, placeholder="a studio photo of a {colour} {name}"
        )
        mapping = st.text_input(
            "What columns are", key=_COLUMNS, placeholder="sku=custom_id, price=metadata.price"
        )
    columns: dict[str, list[str] | None] = {}
    for entry in mapping.split(","):
        name, _, field = (part.strip() for part in entry.partition("="))
        if name:
            columns[name] = [*(columns.get(name) or ()), field] if field else None
    return {"template": template.strip() or None, "columns": columns or None}


def _check(file_id: str, data: bytes, options: dict[str, Any]) -> BatchDryRun:
    """The validation report; kept, since the page is drawn often and the file may be large."""
    asked = (file_id, options)
    kept: tuple[Any, BatchDryRun] | None = st.session_state.get(_CHECKED)
    if kept is not None and kept[0] == asked:
        return kept[1]
    with st.spinner("Checking every line …"):
        report = connect().batches.dry_run(file=data, **options)
    st.session_state[_CHECKED] = (asked, report)
    return report


def _show_report(report: BatchDryRun) -> None:
    facts = [words.count(report.lines, "line"), words.count(report.jobs, "job")]
    facts.append(words.count(report.images, "picture"))
    if report.estimate is not None:
        facts.append(f"about {words.span(report.estimate.gpu_seconds)} of device time")
    said = " · ".join(facts)
    if not report.error_count:
        st.success(f"Every line is good: {said}.", icon=":material/check_circle:")
        return
    bad = words.count(report.error_count, "error")
    if report.accepted:
        st.warning(f"{bad}; those lines are left out. {said}.", icon=":material/warning:")
    else:
        st.error(
            f"**{bad}: nothing can start as it is.** Mend the lines, or leave them out with the "
            f"switch above. {said}.",
            icon=":material/error:",
        )
    st.dataframe(
        [
            {
                "line": one.line,
                "name": one.custom_id,
                "field": (one.pointer or "").strip("/"),
                "what is wrong": one.message,
            }
            for one in report.errors
        ],
        hide_index=True,
    )
    if report.error_count > len(report.errors):
        st.caption(f"The first {len(report.errors)} of them.")


def _start(data: bytes, options: dict[str, Any]) -> None:
    with notices.kept_for_the_top():
        batch = connect().batches.submit(file=data, **options)
        st.session_state.pop(_CHECKED, None)
        dropzone.take(_FILE)
        notices.keep(f"{words.count(batch.counts.total, 'job')} accepted.", kind="good")
