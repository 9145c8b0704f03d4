"""Reads the Dockerfiles: instructions, with lines joined."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from tests.processes import PROJECT

DEPLOY = PROJECT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))


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
