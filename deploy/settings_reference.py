"""Write docs/settings.md from `shared/core/settings.py`: `python -m deploy.settings_reference`.

The source is read as text: names, defaults, units and reasons all stand there, and a page that
repeats them by hand would be wrong within a month.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shared.core.settings import Settings

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "settings.md"
_SOURCE = PROJECT / "shared" / "core" / "settings.py"
_PREFIX = "DARKROOM_"
_FIRST_SECTION = "General"
_SECTION = re.compile(r"^    # (?P<title>[A-Z].*?) -{5,}$")
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


@dataclass(frozen=True)
class Setting:
    """One line of the page."""

    section: str
    name: str
    """The environment variable."""
    kind: str
    default: str
    meaning: str


def settings() -> Iterator[Setting]:
    """Every setting in the order of the source, with the section it stands in."""
    lines = _SOURCE.read_text("utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == Settings.__name__
    )
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        field = Settings.model_fields.get(statement.target.id)
        if field is None:
            continue
        yield Setting(
            section=_section_of(lines, statement.lineno),
            name=_PREFIX + statement.target.id.upper(),
            kind=_kind(field, ast.unparse(statement.annotation)),
            default=_default(field),
            meaning=_docstring(following),
        )


def page() -> str:
    parts = [_HEAD]
    section = None
    for setting in settings():
        if setting.section != section:
            section = setting.section
            parts.append(f"\n## {section}\n\n")
        meaning = f": {setting.meaning}" if setting.meaning else ""
        parts.append(f"- `{setting.name}` ({setting.kind}; {setting.default}){meaning}\n")
    return "".join(parts)


def main() -> None:
    PAGE.write_text(page(), "utf-8")
    print(PAGE.relative_to(PROJECT))


_HEAD = """# Settings

Written by `python -m deploy.settings_reference` from `shared/core/settings.py`. Every process reads
the same variables. A variable that is not set may be a file: `/run/secrets/darkroom_database_url`
stands for `DARKROOM_DATABASE_URL`; `DARKROOM_SECRETS_DIR` names another folder. Durations are
ISO 8601 (`PT30S`, `PT2H`, `P30D`) or seconds; lists are JSON unless the text says otherwise. An
invalid or renamed variable stops the start with its name. In parentheses: kind; default.
"""


def _section_of(lines: list[str], number: int) -> str:
    """The last section comment above a line (counted from 1)."""
    for line in reversed(lines[: number - 1]):
        if heading := _SECTION.match(line):
            return heading["title"]
    return _FIRST_SECTION


def _kind(field: FieldInfo, annotation: str) -> str:
    kind = field.annotation
    text = str(annotation)
    if "timedelta" in text:
        name = "duration"
    elif "SecretStr" in text:
        name = "secret"
    elif "Literal" in text:
        name = " or ".join(f"`{choice}`" for choice in re.findall(r"'([^']+)'", text))
    elif "tuple" in text:
        name = "list"
    elif "Path" in text:
        name = "path"
    elif kind is bool:
        name = "boolean"
    elif "int" in text:
        name = "integer"
    elif "float" in text:
        name = "number"
    else:
        name = "text"
    return name + _bounds(field)


def _bounds(field: FieldInfo) -> str:
    bounds = []
    optional = [rule for part in get_args(field.annotation) for rule in _rules(part)]
    for rule in (*field.metadata, *optional):
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (bound := getattr(rule, attribute, None)) is not None:
                bounds.append(f"{sign} {_plain(bound)}")
    return f", {', '.join(bounds)}" if bounds else ""


def _rules(part: Any) -> list[Any]:
    """The bounds in one arm of `Annotated[int, Field(ge=2)] | None`."""
    return [
        rule
        for extra in getattr(part, "__metadata__", ())
        for rule in getattr(extra, "metadata", [extra])
    ]


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    return "none" if field.default in (None, ()) else f"`{_plain(field.default)}`"


def _plain(value: Any) -> str:
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        for size, unit in _UNITS:
            if seconds and seconds % size == 0:
                count = int(seconds // size)
                return f"{count} {unit}{'s' if count != 1 else ''}"
        return f"{seconds:g} seconds"
    if isinstance(value, SecretStr):
        return "…"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _docstring(node: ast.stmt | None) -> str:
    """The string that follows a field, on one line, as Markdown."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return ""
    text = " ".join(str(node.value.value).split())
    return text.replace("``", "`")


if __name__ == "__main__":
    main()
