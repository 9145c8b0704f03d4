"""Say in a folder of packages which version it holds: `python metadata.py PYPROJECT FOLDER`.

An image copies the project and does not install it, but `/healthz` and every receipt ask Python's
packaging metadata for the version. This writes the little of it that they read.
"""

import sys
import tomllib
from pathlib import Path


def write_metadata(pyproject: Path, packages: Path) -> Path:
    """Make the `.dist-info` folder of the project; return it."""
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    name, version = project["name"], project["version"]
    folder = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    lines = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}")
    (folder / "METADATA").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


if __name__ == "__main__":
    write_metadata(Path(sys.argv[1]), Path(sys.argv[2]))
