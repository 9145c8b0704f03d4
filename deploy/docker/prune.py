"""Take out of a folder of packages what the API never reads: `python prune.py FOLDER`.

Three things make more than a third of its size: the descriptions of 430 AWS services, of which only
S3 and the few that give credentials are read, the prompt of Celery's interactive shell, and a
codec that the API refuses anyway (it reads PNG, JPEG and WebP). Sources and headers of compiled
modules and the types of libraries go, too.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_SERVICES = frozenset({"s3", "sts", "sso", "sso-oidc", "signin"})
"""The store, and what botocore asks for credentials."""
_UNUSED = (
    "boto3/data",
    "boto3/examples",
    "click_repl*",
    "prompt_toolkit*",
    "wcwidth*",
    "PIL/_avif.*.so",
    "pillow.libs/libavif-*",
    "setuptools*",
    "pkg_resources",
    "_distutils_hack",
    "distutils-precedence.pth",
    "pip*",
    "bin",
    "c2pa/libs/*.rlib",
)
_SOURCES = (".c", ".cpp", ".h", ".pxd", ".pyi", ".pyx")


def unused(packages: Path) -> Iterator[Path]:
    """Files and folders that can go."""
    for pattern in _UNUSED:
        yield from packages.glob(pattern)
    for service in (packages / "botocore" / "data").glob("*/"):
        if service.name not in _SERVICES:
            yield service
    yield from (path for path in packages.rglob("*") if path.suffix in _SOURCES)


def prune(packages: Path) -> None:
    for path in list(unused(packages)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    prune(Path(sys.argv[1]))
