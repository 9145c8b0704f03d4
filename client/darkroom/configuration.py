"""Where the service is and which key to use: arguments, then the environment, then a file."""

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from darkroom.errors import ConfigurationError

URL_VARIABLE = "DARKROOM_URL"
KEY_VARIABLE = "DARKROOM_API_KEY"
FILE = Path(".darkroom") / "env"
"""What `make run` writes; looked for here and in every folder above."""


@dataclass(frozen=True)
class Configuration:
    """An address without a slash at its end, a key, and how patient to be."""

    url: str
    api_key: str = field(repr=False)
    timeout: float = 30.0
    """Seconds until an answer must come, beyond what the request itself asks to wait."""
    retries: int = 4
    """How many times a request that may be repeated is sent again."""
    patience: float = 300.0
    """Seconds for which waiting and streams put up with a service that does not answer."""


def find_configuration(
    url: str | None = None,
    api_key: str | None = None,
    *,
    timeout: float = 30.0,
    retries: int = 4,
    patience: float = 300.0,
) -> Configuration:
    """The address and the key, each from the first place that has it.

    Raises:
        ConfigurationError: no place has it, or the address is none.
    """
    from_file = _read_file(_find_file(Path.cwd())) if not _all_given(url, api_key) else {}
    found_url = url or os.environ.get(URL_VARIABLE) or from_file.get(URL_VARIABLE)
    found_key = api_key or os.environ.get(KEY_VARIABLE) or from_file.get(KEY_VARIABLE)
    if not found_url:
        raise ConfigurationError(_missing("address", "url", URL_VARIABLE))
    if not found_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"The address must begin with http:// or https://: {found_url}")
    if not found_key:
        raise ConfigurationError(_missing("API key", "api_key", KEY_VARIABLE))
    if not (found_key.isascii() and found_key.isprintable()) or " " in found_key:
        raise ConfigurationError("The API key has characters that no key has.")
    return Configuration(found_url.rstrip("/"), found_key, timeout, retries, patience)


def _all_given(url: str | None, api_key: str | None) -> bool:
    return bool(url or os.environ.get(URL_VARIABLE)) and bool(
        api_key or os.environ.get(KEY_VARIABLE)
    )


def _missing(what: str, argument: str, variable: str) -> str:
    return (
        f"There is no {what}: give {argument}=…, set {variable}, or run inside a folder "
        f"with {FILE}, which `make run` writes."
    )


def _find_file(start: Path) -> Path | None:
    for folder in (start, *start.parents):
        candidate = folder / FILE
        if candidate.is_file():
            return candidate
    return None


def _read_file(path: Path | None) -> dict[str, str]:
    """The assignments of a shell file: `export NAME=value`, one a line."""
    if path is None:
        return {}
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    values: dict[str, str] = {}
    for line in text.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        for word in words:
            name, is_assignment, value = word.partition("=")
            if is_assignment and name.isidentifier():
                values[name] = value
    return values
