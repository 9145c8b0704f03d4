"""A virtual environment for each peer, made from a file with every version pinned."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"


@dataclass(frozen=True)
class Environments:
    """The environments below `folder`; None: every peer runs in this one, which must have it."""

    folder: Path | None

    def python(self, peer: str) -> Path:
        """The interpreter of a peer's environment, which is made or renewed if need be."""
        if self.folder is None:
            return Path(sys.executable)
        wanted = requirements_of(peer)
        home = self.folder / wanted.stem
        installed = home / "installed.txt"
        python = home / "bin" / "python"
        if not installed.exists() or installed.read_bytes() != wanted.read_bytes():
            print(f"installing {wanted.name} into {home}", file=sys.stderr)  # noqa: T201
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "-r", str(wanted)], check=True)
            installed.write_bytes(wanted.read_bytes())
        return python


def requirements_of(peer: str) -> Path:
    """A peer's own file; the queue libraries share one."""
    own = REQUIREMENTS / f"{peer}.txt"
    return own if own.exists() else REQUIREMENTS / "queues.txt"
