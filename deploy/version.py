"""Set the version wherever it is written: `python -m deploy.version 0.2.0` (`make version`).

pyproject.toml is the source: the code asks the installed package, docs/openapi.json the code. The
client's project, the Helm chart and the Compose file cannot read it; a test compares them.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PLACES: Mapping[str, str] = {
    "pyproject.toml": r'(?<=^version = ")[^"]+',
    "client/pyproject.toml": r'(?<=^version = ")[^"]+',
    "deploy/helm/darkroom/Chart.yaml": r"(?:(?<=^version: )|(?<=^appVersion: ))\S+",
    "deploy/compose.yaml": r"(?<=DARKROOM_VERSION:-)[^}]+",
}
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")


def written() -> dict[str, set[str]]:
    """By file, the versions that it names."""
    texts = {name: (PROJECT / name).read_text("utf-8") for name in PLACES}
    return {name: set(re.findall(PLACES[name], texts[name], re.MULTILINE)) for name in PLACES}


def write(version: str) -> None:
    """Set it in all of them."""
    for name, pattern in PLACES.items():
        text = (PROJECT / name).read_text("utf-8")
        replaced = re.sub(pattern, version, text, flags=re.MULTILINE)
        (PROJECT / name).write_text(replaced, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not _VERSION.fullmatch(sys.argv[1]):
        sys.exit("usage: python -m deploy.version 0.2.0")
    write(sys.argv[1])
