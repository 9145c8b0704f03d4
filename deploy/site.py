"""The documentation site's hooks (`mkdocs.yml`): it brings along what a Git host shows in place.

Pages outside docs/ are taken in. Links are written for the repository: those to a page of the site
lead there, those to source files become plain text. Mermaid draws the diagrams beforehand, in
Chromium: `python -m deploy.site mermaid.min.js` (of the npm package `mermaid`) draws what changed.
"""

import hashlib
import json
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PROJECT = Path(__file__).parent.parent
DIAGRAMS = PROJECT / "docs" / "images"
_FIRST_IMAGE = "deploy/demo_model/first-image.png"
TAKEN_IN = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
_TARGET = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_TO_SOURCE = re.compile(r"\[([^\[\]]*)\]\(source:[^)]*\)")
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DRAW = """async source => {
    mermaid.initialize({startOnLoad: false, theme: "neutral", htmlLabels: false,
        fontFamily: "sans-serif", flowchart: {htmlLabels: false}});
    return (await mermaid.render("diagram", source)).svg;
}"""
_STYLE = """
.md-grid { max-width: 72rem }
.md-typeset table:not([class]) :is(th, td) { min-width: 0; padding: .6em .8em }
td code { word-break: normal; overflow-wrap: anywhere; hyphens: none }
td:first-child code { white-space: nowrap }
img[src*="diagram-"] { background: white; padding: .5rem; border-radius: .2rem }
"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Take in the pages and images that stand elsewhere in the repository; add the API's page."""

    def add(uri: str, content: str | bytes) -> None:
        files.append(File.generated(config, uri, content=content))

    add("index.md", (PROJECT / "README.md").read_text("utf-8"))
    for path in TAKEN_IN:
        add(path, (PROJECT / path).read_text("utf-8"))
    add(_FIRST_IMAGE, (PROJECT / _FIRST_IMAGE).read_bytes())
    add("assets/darkroom.css", _STYLE)
    document = json.loads((PROJECT / "docs" / "openapi.json").read_text("utf-8"))
    add("api.md", "\n\n".join(api_page(document)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Diagrams become images, and links those of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri) or "."
    in_repository = "." if uri in ("index.md", *TAKEN_IN) else "docs"

    def relative(path: str) -> str:
        return posixpath.relpath(path, folder)

    def diagram(found: re.Match[str]) -> str:
        image = relative(f"images/{drawing(found[1]).name}")
        return f"[![Diagram]({image})]({image})"

    def target(found: re.Match[str]) -> str:
        at = posixpath.normpath(posixpath.join(in_repository, folder, found[1]))
        if (PROJECT / at / "README.md").is_file():
            at = posixpath.join(at, "README.md")
        inside = "index.md" if at == "README.md" else at.removeprefix("docs/")
        if files.get_file_from_path(inside):
            return f"]({relative(inside)}{found[2] or ''})"
        return f"](source:{at})" if (PROJECT / at).exists() else found[0]

    return DIAGRAM.sub(diagram, _TO_SOURCE.sub(r"\1", _TARGET.sub(target, markdown)))


# --- Every operation and every schema of the OpenAPI document ---


def api_page(document: dict[str, Any]) -> Iterator[str]:
    """The page's blocks: operations under their tags, then the schemas that they name."""
    yield "# Every operation"
    yield (
        "From [openapi.json](openapi.json), as the server's own `/docs`. "
        "[The HTTP API](http-api.md) explains how they work together."
    )
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "operationId" in operation
    ]
    for tag in document["tags"]:
        yield f"## {tag['name']}"
        yield tag["description"]
        for method, path, operation in operations:
            if operation["tags"][0] == tag["name"]:
                yield f"### `{method} {path}`"
                yield from _operation(operation)
    yield "## Schemas"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f'<h3 id="schema-{name.lower()}">{name}</h3>'
        yield schema.get("description", "")
        yield from _fields(
            ("field", "type", "meaning"),
            [
                (f"`{field}`", _type(of), _meaning(of, field in schema.get("required", ())))
                for field, of in schema.get("properties", {}).items()
            ],
        )


def _operation(operation: dict[str, Any]) -> Iterator[str]:
    yield f"**{operation['summary']}.** {operation.get('description', '')}"
    yield from _fields(
        ("parameter", "in", "type", "meaning"),
        [
            (f"`{each['name']}`", each["in"], _type(each["schema"]), _meaning(each, False))
            for each in operation.get("parameters", ())
        ],
    )
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        yield "Body: " + "; ".join(f"`{kind}`: {_type(of['schema'])}" for kind, of in body.items())
    rows = []
    for status, answer in sorted(operation["responses"].items()):
        kinds = [_type(of["schema"]) for of in answer.get("content", {}).values() if "schema" in of]
        shown = " ".join(dict.fromkeys(kinds)) if status < "4" else ""
        rows.append((status, shown, answer["description"]))
    yield from _fields(("status", "answer", "meaning"), rows)


def _fields(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if rows:
        lines = [heads, ("---",) * len(heads), *rows]
        escaped = ([" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines)
        yield "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name.lower()}">{name}</a>'
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    for combined in ("anyOf", "oneOf", "allOf"):
        if combined in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[combined])))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type") or "any")


def _meaning(schema: dict[str, Any], required: bool) -> str:
    """Its description, whether it is required, and its default."""
    default = schema.get("default", schema.get("schema", {}).get("default"))
    needed = "Required. " if required or schema.get("required") is True else ""
    unless = "" if default is None else f" Default: `{json.dumps(default)}`."
    return f"{needed}{schema.get('description', '')}{unless}"


# --- Diagrams ---


def drawing(source: str) -> Path:
    """Where a diagram's image is kept: named by its text, so that a changed one has none."""
    return DIAGRAMS / f"diagram-{hashlib.sha256(source.encode()).hexdigest()[:10]}.svg"


def draw(mermaid: Path) -> None:
    """Draw each diagram that has no image, and remove images whose diagram has gone."""
    from playwright.sync_api import sync_playwright

    pages = (PROJECT / "docs").glob("**/*.md")
    sources = [text for page in pages for text in DIAGRAM.findall(page.read_text("utf-8"))]
    for left in set(DIAGRAMS.glob("diagram-*.svg")) - {drawing(source) for source in sources}:
        left.unlink()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        canvas = browser.new_page()
        canvas.add_script_tag(path=mermaid)
        for source in sources:
            if not drawing(source).exists():
                drawing(source).write_text(canvas.evaluate(_DRAW, source), "utf-8")
        browser.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
