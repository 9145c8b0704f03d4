"""A new batch: its file, what its columns are, what it would make, and its start."""

import re
import uuid
from collections.abc import Sequence
from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from darkroom.playground.connection import connect
from darkroom.playground.formatting import count, escape, short, span, until
from darkroom.playground.state import (
    errors_shown_here,
    errors_shown_on_top,
    notify,
    show_uploader,
    take_upload,
)
from darkroom.types.batches import BatchDryRun, Finding, TableColumn

_FILE = "batch-file"
_SKIP = "batch-skip"
_TEMPLATE = "batch-template"
_REPORTS = "batch-reports"
_ATTEMPTS = "batch-attempts"
"""Key of the idempotency keys of files that were started, of which one may not have arrived."""
_MAX_REPORTS = 4
_MAX_COLUMNS = 24
"""Columns that are drawn; the others of a table are left out or the fields of their names."""
_FIELDS = (
    *("prompt", "negative_prompt", "custom_id", "seed", "num_images", "model", "width", "height"),
    *("steps", "guidance_scale", "scheduler", "init_image", "strength", "output_format"),
)
"""Offered for a column; others can be typed."""
_EXAMPLES = {
    "csv": "custom_id,prompt,seed\nhat-1,a red hat,7\nhat-2,a {green|blue} hat,8\n",
    "jsonl": '{"custom_id": "hat-1", "prompt": "a red hat", "seed": 7}\n'
    '{"custom_id": "hat-2", "prompt": "a {green|blue} hat", "num_images": 2}\n'
    '"a yellow scarf"\n',
}


def show(session_id: str) -> None:
    """Draw the uploader, or what its file would make."""
    file = show_uploader(
        "A file with one prompt per row: CSV or JSONL, optionally gzipped",
        _FILE,
        ["csv", "jsonl", "gz"],
        max_megabytes=100,
    )
    if file is None:
        _show_format()
        return
    options: dict[str, Any] = {
        "session_id": session_id,
        "on_error": "skip" if st.session_state.get(_SKIP) else "reject",
        "format": "csv" if file.name.lower().removesuffix(".gz").endswith(".csv") else "jsonl",
    }
    with errors_shown_here(), st.container(border=True, key="batch-new"):
        columns = _validate(file, options).columns
        is_table = options["format"] == "csv"
        mapping = _show_mapping(file.file_id, columns, is_table=is_table)
        if mapping is None:
            return
        options |= mapping
        report = _validate(file, options)
        _show_report(report)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                f"Start {count(report.jobs, 'job')}",
                type="primary",
                icon=":material/play_arrow:",
                disabled=not report.accepted or not report.jobs,
                key="batch-start",
                on_click=_start,
                args=(file, options),
            )
            if report.jobs and (report.error_count or st.session_state.get(_SKIP)):
                st.toggle("Skip invalid rows", key=_SKIP)


def _show_format() -> None:
    with st.expander("File format", icon=":material/help:"):
        for kind, text in _EXAMPLES.items():
            st.code(text, language="json" if kind == "jsonl" else None)
            st.download_button(
                f"Download this {kind.upper()}",
                text,
                file_name=f"prompts.{kind}",
                key=f"batch-example-{kind}",
                icon=":material/download:",
                type="tertiary",
                on_click="ignore",
            )
        st.caption(
            "A row has the fields of a job; `{a|b}` stands for several prompts. A table may have "
            "columns of its own: you say what they are once it is here. Up to 50,000 rows and jobs."
        )


def _show_mapping(
    file_id: str, columns: Sequence[TableColumn], *, is_table: bool
) -> dict[str, Any] | None:
    """Draw the template and what each column is; None: there is no prompt yet.

    JSON lines have a template alone: each may have other keys, and a mapping wants them in all.
    """
    is_foreign = is_table and any(not column.fields for column in columns)
    title = "Columns and template" if is_table else "Template"
    chosen: dict[str, list[str]] = {}
    with st.expander(title, icon=":material/table:", expanded=is_foreign):
        template = _show_template(columns)
        if is_table:
            st.caption("What each column is")
            with st.container(horizontal=True):
                chosen = _show_columns(file_id, columns[:_MAX_COLUMNS])
            _show_left_out(columns, chosen, template)
            if template:  # it makes the prompts, and may name the column of this name
                chosen = {
                    name: [field for field in fields if field != "prompt"]
                    for name, fields in chosen.items()
                }
    changed = {
        column.name: chosen[column.name] or None
        for column in columns
        if column.name in chosen and (is_foreign or chosen[column.name] != list(column.fields))
    }
    if is_foreign and not template and not any("prompt" in fields for fields in chosen.values()):
        st.info(
            "**What are the columns of this table?** Choose the one with the prompt, or write a "
            "template with columns in braces.",
            icon=":material/table:",
        )
        return None
    mapping = {"template": template, "columns": changed}
    return {name: value for name, value in mapping.items() if value}


def _show_template(columns: Sequence[TableColumn]) -> str:
    names = [column.name for column in columns if not re.search(r"[{|}\\]", column.name)]
    example = " ".join(f"{{{name}}}" for name in names[:2]) or "{colour} {name}"
    template: str = st.text_input(
        "Prompt for every row",
        key=_TEMPLATE,
        placeholder=f"a studio photo of {example}",
        persist_state="session",
    )
    with st.container(horizontal=True, gap="xsmall", key="chips"):
        for number, name in enumerate(names[:_MAX_COLUMNS]):
            st.button(
                escape(short(name, 24)),
                key=f"batch-insert-{number}",
                icon=":material/add:",
                help="Put the value of this column into the prompt.",
                on_click=_insert,
                args=(name,),
            )
    return template.strip()


def _insert(name: str) -> None:
    written = st.session_state.get(_TEMPLATE, "").strip()
    st.session_state[_TEMPLATE] = f"{written} {{{name}}}".strip()


def _show_columns(file_id: str, columns: Sequence[TableColumn]) -> dict[str, list[str]]:
    """Draw what each column is; return its fields by its name."""
    chosen: dict[str, list[str]] = {}
    for number, column in enumerate(columns):
        own = [field for field in column.fields if field not in _FIELDS]
        named = [f"metadata.{column.name}"] if len(column.name) <= 64 else []
        chosen[column.name] = st.multiselect(
            escape(short(column.name, 40)),
            [*_FIELDS, *own, *named],
            list(column.fields),
            key=f"batch-column-{file_id}-{number}",
            placeholder=f"e.g. {short(column.example, 24)}" if column.example else "empty",
            accept_new_options=True,
            persist_state="session",
            width=290,
        )
    return chosen


def _show_left_out(
    columns: Sequence[TableColumn], chosen: dict[str, list[str]], template: str
) -> None:
    left = [
        escape(short(one.name, 40))
        for one in columns
        if not chosen.get(one.name) and f"{{{one.name}}}" not in template
    ]
    if left:
        st.caption(f"Left out: {', '.join(left)}")


def _validate(file: UploadedFile, options: dict[str, Any]) -> BatchDryRun:
    """The validation report; the latest used are kept: pages are redrawn often, files are large."""
    request = _identity(file, options)
    kept: dict[str, BatchDryRun] = st.session_state.setdefault(_REPORTS, {})
    report = kept.pop(request, None)
    if report is None:
        with st.spinner("Validating every row …"):
            report = connect().batches.dry_run(file=(file.name, file.getvalue()), **options)
    kept[request] = report
    for old in list(kept)[:-_MAX_REPORTS]:
        del kept[old]
    return report


def _identity(file: UploadedFile, options: dict[str, Any]) -> str:
    return repr((file.file_id, options))


def _show_report(report: BatchDryRun) -> None:
    """Draw what the batch would make and take, its first jobs, and what is wrong with its rows."""
    if report.jobs:
        _show_facts(report)
        left = report.jobs - len(report.first_jobs)
        st.table(
            [
                {
                    "Row": str(job.line),
                    "Name": escape(job.custom_id),
                    "Prompt": escape(short(job.prompt, 160)),
                    "Size": f"{job.width} × {job.height}",
                    "Steps": str(job.steps),
                    "Images": str(len(job.seeds)),
                }
                for job in report.first_jobs
            ],
            border="horizontal",
            hide_index=True,
        )
        if left:
            st.caption(f"… and {count(left, 'job')} more.")
    if report.refused_jobs:
        refused = count(report.refused_jobs, "job")
        st.warning(f"The operator's filter rejects {refused}, which would fail.")
    if not report.error_count:
        return
    errors = count(report.error_count, "error")
    if report.accepted:
        st.warning(f"{errors}: these rows will be skipped.", icon=":material/warning:")
    else:
        skip = ", or skip them" if report.jobs else ""
        st.error(
            f"**{errors}: this file cannot be started.** Correct the rows and drop the file "
            f"again{skip}.",
            icon=":material/error:",
        )
    show_findings(report.errors)
    if report.error_count > len(report.errors):
        st.caption(f"The first {len(report.errors)} of them.")


def _show_facts(report: BatchDryRun) -> None:
    estimate, allowance = report.estimate, connect().usage().queued_cost
    work = f"{report.cost / 1e6:,.1f} megapixel-steps"
    if allowance.limit:
        work += f", {report.cost / allowance.limit:.0%} of what may wait at once"
    facts = {
        "Rows": f"{report.lines:,}",
        "Images": f"{report.images:,}",
        "Device time": f"about {span(estimate.gpu_seconds)}" if estimate else "not known yet",
        "Done in": f"about {until(report.eta)}" if report.eta else "not known yet",
        "Cost": work,
    }
    with st.container(horizontal=True, gap="medium", key="batch-facts"):
        for name, value in facts.items():
            with st.container(width="content", gap=None):
                st.caption(name)
                st.markdown(f"**{value}**")


def show_findings(errors: Sequence[Finding]) -> None:
    """Draw what is wrong with rows, and where."""
    st.table(
        [
            {
                "Row": "file" if error.line is None else str(error.line),
                "Name": escape(error.custom_id or ""),
                "Field": escape((error.pointer or "").strip("/")),
                "Problem": escape(error.message),
            }
            for error in errors
        ],
        border="horizontal",
        hide_index=True,
    )


def _start(file: UploadedFile, options: dict[str, Any]) -> None:
    with errors_shown_on_top():
        source = (file.name, file.getvalue())
        attempts: dict[str, str] = st.session_state.setdefault(_ATTEMPTS, {})
        # An answer may be lost: the next click is the same request, and makes no second batch.
        key = attempts.setdefault(_identity(file, options), str(uuid.uuid4()))
        batch = connect().batches.submit(file=source, idempotency_key=key, **options)
        take_upload(_FILE)
        for name in (_REPORTS, _ATTEMPTS, _TEMPLATE, _SKIP):
            st.session_state.pop(name, None)
        notify(f"{count(batch.counts.total, 'job')} accepted.", "success")
