"""Derive the blocking client, `darkroom._sync`, from the asynchronous one: `make client`."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "darkroom"
BY_HAND = frozenset({"concurrency.py"})
"""Each side has its own: blocking is their one real difference."""
MARK = "# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.\n"
_RULES = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync([A-Z])", r"\1"),
    (r"\bdarkroom\._async\b", "darkroom._sync"),
    (r"\b__a(enter|exit|iter)__", r"__\1__"),
    (r"\ba(close|closing|read|iter_bytes|iter_lines)\b", r"\1"),
    (r"\basynccontextmanager\b", "contextmanager"),
)
_IDIOMS = "I,SIM117,UP028,C416"
"""What is shorter without `await`."""


def derive(source: str) -> str:
    """The blocking twin of a module, not yet formatted."""
    for pattern, replacement in _RULES:
        source = re.sub(pattern, replacement, source)
    return MARK + source


def derive_all() -> dict[str, str]:
    """File name -> text, of the whole generated package."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path in (PACKAGE / "_async").glob("*.py"):
            if path.name not in BY_HAND:
                (folder / path.name).write_text(derive(path.read_text("utf-8")), "utf-8")
        (folder / "__init__.py").write_text(f'{MARK}"""The blocking client."""\n', "utf-8")
        _ruff(folder, "check", "--fix", "--unsafe-fixes", "--select", _IDIOMS)
        _ruff(folder, "format")
        return {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.py"))}


def _ruff(folder: Path, *command: str) -> None:
    """Sort imports and format: the lines are shorter now."""
    settings = ("--config", "pyproject.toml", "--no-cache", "--quiet")
    arguments = [sys.executable, "-m", "ruff", *command, *settings, str(folder)]
    subprocess.run(arguments, check=True, cwd=PACKAGE.parents[1])


def main() -> None:
    """Write the package, and remove files that are no longer generated."""
    folder = PACKAGE / "_sync"
    texts = derive_all()
    for path in folder.glob("*.py"):
        if path.name not in texts and path.name not in BY_HAND:
            path.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
