"""Reads the Dockerfiles: instructions, with lines joined, and what they copy."""

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.processes import PROJECT

DEPLOY = PROJECT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
OURS = ("api", "darkroom", "darkroom_server", "deploy", "migrations", "shared", "worker")
"""The packages of the project."""


class Instruction(NamedTuple):
    """One instruction of a Dockerfile."""

    word: str
    """In capitals: ``COPY``."""
    rest: str


def instructions(dockerfile: Path) -> list[Instruction]:
    """All of them, in order."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text("utf-8"), flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        Instruction(word.upper(), rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def command_of(dockerfile: Path, word: str = "CMD") -> list[str]:
    """The last `CMD` or `ENTRYPOINT`, as a list; empty where there is none."""
    found = [each.rest for each in instructions(dockerfile) if each.word == word]
    return list(json.loads(found[-1])) if found else []


def copies(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Every file or folder of the project that it copies, with where to; a folder ends in `/`."""
    for word, rest in instructions(dockerfile):
        if word == "COPY" and not rest.startswith("--from="):
            *sources, target = [part for part in rest.split() if not part.startswith("--")]
            yield from ((source, target) for source in sources)


def copy_all(dockerfile: Path, folder: Path) -> None:
    """Copy what it copies; `/app/api` becomes `app/api` in the folder."""
    for source, target in copies(dockerfile):
        there = folder / target.strip("/")
        if (PROJECT / source).is_dir():
            shutil.copytree(PROJECT / source, there, dirs_exist_ok=True)
        else:
            there = there / Path(source).name if target.endswith("/") else there
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / source, there)


def imported(path: Path) -> set[str]:
    """What a file imports by full names: modules, and what may be a module of a package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def modules_named(dockerfile: Path) -> set[str]:
    """The modules that its own commands run or import: `python -m NAME`, `import NAME, NAME`."""
    text = " ".join(rest for _, rest in instructions(dockerfile))
    text = re.sub(r'["\\,]', " ", text)
    listed = re.findall(r"python -c +import ([\w. ]+)", text)
    return {*re.findall(r"python +-m +([\w.]+)", text), *" ".join(listed).split()}


def is_ours(name: str) -> bool:
    """Whether the project has a module or package of this full name."""
    inside = name.partition(".")[0] in OURS
    return inside and any(is_module(name, root) for root in (PROJECT, PROJECT / "client"))


def is_module(name: str, root: Path) -> bool:
    """Whether a folder has a module or package of this full name."""
    path = root.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()
