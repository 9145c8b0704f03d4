"""The version of this software."""

from importlib.metadata import PackageNotFoundError, version


def _installed_version() -> str:
    try:
        return version("darkroom-server")
    except PackageNotFoundError:
        return "dev"


VERSION = _installed_version()
"""``dev`` in a checkout that is not installed."""
