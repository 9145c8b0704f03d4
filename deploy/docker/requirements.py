"""Print what an image installs: `python deploy/docker/requirements.py PYPROJECT [EXTRA …]`.

The dependencies and the named extras of a `pyproject.toml`, one a line, for `pip install -r`. So
an image's layer of packages changes with them, not with every line of code, and the project itself
is copied, not installed: what is not copied is not in the image.
"""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(pyproject: Path, extras: Sequence[str]) -> list[str]:
    """The dependencies, then those of each extra.

    Raises:
        KeyError: the project has no extra of that name.
    """
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
