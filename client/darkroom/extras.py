"""What the optional parts of this package need, and how to install what is missing of it."""

import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

_OF_EXTRA = re.compile(r"(?P<requirement>[^;]+?)\s*;.*extra\s*==\s*[\"'](?P<extra>\w+)[\"']")


def how_to_install(extra: str, modules: Mapping[str, str]) -> str | None:
    """How to install the missing modules; None if all are there.

    It names packages and no checkout or index, so that it is right wherever the client came from.

    Args:
        extra: name of the optional part.
        modules: module -> package of what cannot be done without.
    """
    missing = [package for module, package in modules.items() if find_spec(module) is None]
    if not missing:
        return None
    wanted = _requirements(extra) or missing
    command = " ".join(f"'{each}'" for each in wanted)
    return (
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed. "
        f"Install what the extra `{extra}` needs: {sys.executable} -m pip install {command}"
    )


def _requirements(extra: str) -> list[str]:
    try:
        declared = requires("darkroom-client") or []
    except PackageNotFoundError:  # run from a source tree
        return []
    matches = filter(None, map(_OF_EXTRA.fullmatch, declared))
    return [each["requirement"] for each in matches if each["extra"] == extra]
