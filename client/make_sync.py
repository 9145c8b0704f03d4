"""Derive the blocking client, `darkroom._sync`, from the asynchronous one: `make client`."""

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "darkroom"
BY_HAND = frozenset({"concurrency.py"})
"""Each side has its own: what blocks and what does not is the one real difference."""
MARK = "# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.\n"
_RULES = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync([A-Z])", r"\1"),
    (r"\bdarkroom\._async\b", "darkroom._sync"),
    (r"\b__a(enter|exit|iter)__", r"__\1__"),
    (r"\ba(close|read|iter_bytes|iter_lines)\b", r"\1"),
    (r"\basynccontextmanager\b", "contextmanager"),
)
_IDIOMS = ("check", "--fix", "--unsafe-fixes", "--quiet", "--select", "I,SIM117,UP028,C416")
"""What can be said shorter once it does not wait."""
_DOCSTRING = {
    "__init__.py": '"""The blocking client."""\n',
}


def derive(name: str, source: str) -> str:
    """The blocking twin of a module."""
    if name in _DOCSTRING:
        return MARK + _DOCSTRING[name]
    for pattern, replacement in _RULES:
        source = re.sub(pattern, replacement, source)
    return _ruff(MARK + source, *_IDIOMS)


def _ruff(source: str, *command: str) -> str:
    """Put imports in order and lay the lines out anew: they are shorter than they were."""
    for arguments in (command, ("format", "--quiet")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", "twin.py", "-"],
            input=source,
            capture_output=True,
            text=True,
            check=True,
            cwd=PACKAGE,
        )
        source = done.stdout
    return source


def derive_all() -> dict[str, str]:
    """File name -> text, of the whole generated package."""
    modules = sorted((PACKAGE / "_async").glob("*.py"))
    return {
        path.name: derive(path.name, path.read_text("utf-8"))
        for path in modules
        if path.name not in BY_HAND
    }


def main() -> None:
    """Write the package anew; what is generated no more is removed."""
    folder = PACKAGE / "_sync"
    texts = derive_all()
    for path in folder.glob("*.py"):
        if path.name not in texts and path.name not in BY_HAND:
            path.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
