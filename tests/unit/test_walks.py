"""The walks of docs/architecture.md: which files a reader goes through, in the order of the calls.

A walk follows calls through the source: from a function it goes, in the order in which they are
evaluated, to every function of the project that it calls or hands to others, as far as imports and
annotations tell which one that is; once each, and not into what the page leaves out.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "architecture.md"
PACKAGES = ("api", "shared", "worker")
CORE = frozenset(
    ("api/core/", "api/context.py", "shared/core/", "shared/core/outbound/", "worker/core/")
)
CARRIERS = ("api/core/publisher.py", "shared/core/broker.py")
"""Files of `core` through which work goes from one process to the next."""


@dataclass(frozen=True)
class Place:
    """A function, a class or a method, by its file and its name in it."""

    file: str
    name: str


@dataclass
class Source:
    """What a file defines, and which places its names mean."""

    functions: dict[str, ast.AST]
    """Also `Class.method`."""
    modules: dict[str, str]
    """Imported modules: name -> file."""
    imported: dict[str, Place]


@dataclass(frozen=True)
class Stated:
    """What the page says of a walk."""

    title: str
    start: Place
    files: tuple[str, ...]
    returns: int
    left_out: frozenset[str]


def stated() -> list[Stated]:
    """The walks of the page."""
    text = PAGE.read_text("utf-8")
    text = text[text.index("## Walks") : text.index("## Processes")]
    found = []
    for part in text.split("\n### ")[1:]:
        title = part.splitlines()[0]
        start = re.search(r"Begins with `(.+?)` in `(.+?)`; (\d+) files, (\d+) returns", part)
        assert start is not None, f"{title}: it does not say where it begins"
        files = tuple(re.findall(r"^\d+\. `(.+?)`", part, re.MULTILINE))
        assert len(files) == int(start[3]), f"{title}: it lists {len(files)} files"
        left_out = frozenset(re.findall(r"`([^`]+(?:\.py|/))`", part[part.index("Left out:") :]))
        place = Place(start[2], start[1])
        found.append(Stated(title, place, files, int(start[4]), left_out | CORE))
    return found


@pytest.mark.parametrize("page", stated(), ids=lambda page: page.title)
def test_a_walk_is_as_short_as_the_page_says(page: Stated) -> None:
    walk = Walk(page.left_out)
    walk.go(page.start)
    assert walk.files == list(page.files), "write the new walk into docs/architecture.md"
    assert len(walk.returns) <= page.returns, f"it turns back: {walk.returns}"


@pytest.mark.parametrize("page", stated(), ids=lambda page: page.title)
def test_what_a_walk_leaves_out_is_there(page: Stated) -> None:
    assert [name for name in page.left_out if not (PROJECT / name).exists()] == []


def test_paths_that_the_page_names_are_there() -> None:
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)*(?:\.py|/))`", PAGE.read_text("utf-8"))
    assert "worker/generate.py" in named
    assert [path for path in named if not (PROJECT / path).exists()] == []


def test_walks_are_short() -> None:
    """A reader keeps some dozen files in mind."""
    assert {page.title for page in stated() if len(page.files) > 12 or page.returns > 6} == set()


def file_of(module: str) -> str | None:
    """The file of a dotted name of the project."""
    if module.split(".", maxsplit=1)[0] not in PACKAGES:
        return None
    path = PROJECT / (module.replace(".", "/") + ".py")
    return str(path.relative_to(PROJECT)) if path.exists() else None


@cache
def read(file: str) -> Source:
    """The file's definitions and imports, wherever in it they stand."""
    tree = ast.parse((PROJECT / file).read_text("utf-8"))
    functions: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            functions[node.name] = node
        if isinstance(node, ast.ClassDef):
            parts = (one for one in node.body if isinstance(one, _FUNCTIONS))
            functions |= {f"{node.name}.{part.name}": part for part in parts}
    source = Source(functions, {}, {})
    for imported in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        for alias in imported.names:
            name = alias.asname or alias.name
            if (module := file_of(f"{imported.module}.{alias.name}")) is not None:
                source.modules[name] = module
            elif (module := file_of(str(imported.module))) is not None:
                source.imported[name] = Place(module, alias.name)
    return source


def find(file: str, name: str) -> Place | None:
    """The definition that a name of a file means, through as many imports as it takes."""
    source = read(file)
    if name in source.functions:
        return Place(file, name)
    if name in source.imported:
        return find(source.imported[name].file, source.imported[name].name)
    head, _, tail = name.partition(".")
    if tail and head in source.modules:
        return find(source.modules[head], tail)
    if tail and head in source.imported:
        owner = source.imported[head]
        return find(owner.file, f"{owner.name}.{tail}")
    return None


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` of an expression that is nothing but names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)) is not None:
        return f"{head}.{node.attr}"
    return None


class Walk:
    """The places that a walk goes through, in order."""

    def __init__(self, left_out: frozenset[str]) -> None:
        """`left_out`: files that the walk does not go into, and folders, which end in a slash."""
        self._left_out = left_out
        self._seen: set[Place] = set()
        self.files: list[str] = []
        """In the order in which the walk comes to them."""
        self.returns: list[tuple[str, str]] = []
        """(from, to): further ways into a file in which the walk has been already."""
        self._ways: set[tuple[str, str]] = set()

    def go(self, place: Place, caller: str = "") -> None:
        """Into a function, and from it into all that it calls; `caller` is the file it is in."""
        if place in self._seen or not self._enters(place.file):
            return
        self._seen.add(place)
        node = read(place.file).functions[place.name]
        if isinstance(node, ast.ClassDef):
            init = find(place.file, f"{place.name}.__init__")
            if init is not None:
                self.go(init, caller)
            return
        way = caller, place.file
        if place.file not in self.files:
            self.files.append(place.file)
        elif place.file != caller and way not in self._ways:
            self.returns.append(way)
        self._ways.add(way)
        for target in Scope(place, node).calls(node):
            self.go(target, place.file)

    def _enters(self, file: str) -> bool:
        if file in CARRIERS:
            return True
        folder, _, _ = file.rpartition("/")
        return file not in self._left_out and f"{folder}/" not in self._left_out


class Scope:
    """What the names in a function mean."""

    def __init__(self, place: Place, node: ast.AST) -> None:
        self._file = place.file
        self._types: dict[str, Place] = {}
        if "." in place.name:
            self._types["self"] = Place(place.file, place.name.split(".")[0])
        for one in ast.walk(node):
            if isinstance(one, ast.arg) and one.annotation is not None:
                self._learn(one.arg, self._class(one.annotation))
        for one in ast.walk(node):
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
                self._learn(one.targets[0].id, self.type_of(one.value))
            if isinstance(one, ast.withitem) and isinstance(one.optional_vars, ast.Name):
                self._learn(one.optional_vars.id, self.type_of(one.context_expr))

    def _learn(self, name: str, kind: Place | None) -> None:
        if kind is not None:
            self._types.setdefault(name, kind)

    def _class(self, annotation: ast.AST) -> Place | None:
        """The class that an annotation names; of an alias such as `Res`, the class within."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        if isinstance(annotation, ast.BinOp):  # Class | None
            return self._class(annotation.left)
        if isinstance(annotation, ast.Subscript):
            inner = annotation.slice
            return self._class(inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
        name = dotted(annotation)
        if name is None:
            return None
        found = find(self._file, name)
        if found is not None:
            node = read(found.file).functions[found.name]
            return found if isinstance(node, ast.ClassDef) else None
        return alias_of(self._file, name)

    def type_of(self, value: ast.AST) -> Place | None:
        """The class of an expression, where names and annotations tell it."""
        if isinstance(value, ast.Await):
            return self.type_of(value.value)
        if isinstance(value, ast.Name):
            return self._types.get(value.id)
        if isinstance(value, ast.Attribute):
            owner = self.type_of(value.value)
            return attribute_of(owner, value.attr) if owner is not None else None
        if isinstance(value, ast.Call):
            return self._made_by(value)
        return None

    def _made_by(self, call: ast.Call) -> Place | None:
        # `resources.get(Kind)` gives the slice's own object of that kind.
        if isinstance(call.func, ast.Attribute) and call.func.attr == "get" and len(call.args) == 1:
            kind = self._class(call.args[0])
            if kind is not None:
                return kind
        target = self.resolve(call.func)
        if target is None:
            return None
        node = read(target.file).functions[target.name]
        if isinstance(node, ast.ClassDef):
            return target
        returns = getattr(node, "returns", None)
        return Scope(target, ast.Pass())._class(returns) if returns is not None else None

    def resolve(self, function: ast.AST) -> Place | None:
        """The project's function, method or class that an expression names."""
        if isinstance(function, ast.Attribute):
            owner = self.type_of(function.value)
            if owner is not None:
                return find(owner.file, f"{owner.name}.{function.attr}")
        name = dotted(function)
        return find(self._file, name) if name is not None else None

    def calls(self, node: ast.AST) -> Iterator[Place]:
        """What is called, or handed to others to be called, as it is evaluated."""
        for child in ast.iter_child_nodes(node):
            if isinstance(
                child,
                ast.expr
                | ast.stmt
                | ast.keyword
                | ast.withitem
                | ast.comprehension
                | ast.ExceptHandler
                | ast.match_case,
            ):
                yield from self.calls(child)
        if isinstance(node, ast.Call):
            handed = [*node.args, *(keyword.value for keyword in node.keywords)]
            for one in (*handed, node.func):
                if isinstance(one, ast.Name | ast.Attribute):
                    target = self.resolve(one)
                    if target is not None:
                        yield target


@cache
def alias_of(file: str, name: str) -> Place | None:
    """The class within an alias: `Res = Annotated[Resources, Depends(...)]`."""
    source = read(file)
    if name in source.imported:
        return alias_of(source.imported[name].file, source.imported[name].name)
    for node in ast.parse((PROJECT / file).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == name:
            return Scope(Place(file, ""), ast.Pass())._class(node.value)
    return None


@cache
def attribute_of(owner: Place, name: str) -> Place | None:
    """The class of an attribute, as the class or its `__init__` says."""
    node = read(owner.file).functions[owner.name]
    assert isinstance(node, ast.ClassDef)
    scope = Scope(Place(owner.file, ""), ast.Pass())
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and dotted(one.target) == name:
            return scope._class(one.annotation)
        if isinstance(one, ast.FunctionDef) and one.name == name and one.returns is not None:
            return scope._class(one.returns)  # a property
    init = read(owner.file).functions.get(f"{owner.name}.__init__")
    if init is not None:
        inner = Scope(Place(owner.file, f"{owner.name}.__init__"), init)
        for node_within in ast.walk(init):
            match node_within:
                case ast.Assign(targets=[target], value=value) if dotted(target) == f"self.{name}":
                    return inner.type_of(value)
                case ast.AnnAssign(target=target) if dotted(target) == f"self.{name}":
                    return inner._class(node_within.annotation)
    return None
