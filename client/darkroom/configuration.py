"""Where the service is and which key to use.

Each comes from the first place that has it: arguments, the environment, the file that `make run`
writes, and what `darkroom login` has saved. A saved key goes to its own server only.
"""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from darkroom.errors import ConfigurationError

URL_VARIABLE = "DARKROOM_URL"
KEY_VARIABLE = "DARKROOM_API_KEY"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
FILE = Path(".darkroom") / "env"
"""What `make run` writes; looked for here and in every folder above."""


@dataclass(frozen=True)
class Configuration:
    """An address without a slash at its end, a key, timeouts and retries."""

    url: str
    api_key: str = field(repr=False)
    timeout: float = 30.0
    """Seconds to wait for an answer, in addition to a requested wait."""
    retries: int = 4
    """How often an idempotent request is sent again."""
    retry_timeout: float = 300.0
    """Seconds for which waits and streams tolerate a service that is down."""
    url_source: str = "argument"
    """Where the address was found: `argument`, the name of a variable, or the path of a file."""
    key_source: str = "argument"


@dataclass(frozen=True)
class SavedKeys:
    """What `darkroom login` saves: a key for each server, readable by its owner only."""

    path: Path
    default: str | None = None
    """The server of the latest login."""
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls) -> "SavedKeys":
        """The user's file; empty if there is none.

        Raises:
            ConfigurationError: it cannot be read.
        """
        folder = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
        path = Path(folder) / "darkroom" / "keys.json"
        try:
            document = json.loads(path.read_text("utf-8"))
            return cls(path, document["default"], dict(document["keys"]))
        except (FileNotFoundError, NotADirectoryError):
            return cls(path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            said = f"{path} cannot be read: {error or type(error).__name__}."
            raise ConfigurationError(
                f"{said} Remove it, and run `darkroom login` again."
            ) from error

    def with_key(self, url: str, key: str) -> "SavedKeys":
        """Save a key, and make its server the default."""
        return self._written(url, {**self.keys, url: key})

    def without(self, url: str) -> "SavedKeys":
        """Forget a server's key."""
        keys = {server: key for server, key in self.keys.items() if server != url}
        default = next(reversed(keys), None) if self.default == url else self.default
        return self._written(default, keys)

    def _written(self, default: str | None, keys: Mapping[str, str]) -> "SavedKeys":
        document: dict[str, Any] = {"default": default, "keys": keys}
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        partial.unlink(missing_ok=True)
        # Created with its final mode: not even for a moment can others read it.
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(document, file, indent=2)
        partial.replace(self.path)
        return SavedKeys(self.path, default, keys)


def find_configuration(
    url: str | None = None,
    api_key: str | None = None,
    *,
    timeout: float = 30.0,
    retries: int = 4,
    retry_timeout: float = 300.0,
) -> Configuration:
    """The address and the key, each from the first place that has it.

    Raises:
        ConfigurationError: no place has it, or it is invalid.
    """
    found_url, url_source = find_url(url, with_own_key=not _given(api_key, KEY_VARIABLE)[0])
    found_key, key_source = _find_key(api_key, found_url)
    if not found_key:
        raise ConfigurationError(_missing("API key", "api_key", KEY_VARIABLE))
    key = checked_key(found_key)
    return Configuration(found_url, key, timeout, retries, retry_timeout, url_source, key_source)


def find_url(url: str | None = None, *, with_own_key: bool = False) -> tuple[str, str]:
    """The address, without a slash at its end, and where it was found.

    A key that comes from elsewhere (not `with_own_key`) goes to no other machine because a file in
    some folder says so: the folder may be another person's work.

    Raises:
        ConfigurationError: there is none, or it is invalid.
    """
    found, source = _given(url, URL_VARIABLE)
    if not found:
        path, values = _read_file()
        found, source = values.get(URL_VARIABLE), str(path)
        if found and not with_own_key and urlsplit(found).hostname not in LOOPBACK:
            raise ConfigurationError(
                f"{path} names {found}, which is not this machine: to send your key there, give "
                f"url=…, set {URL_VARIABLE}, or run `darkroom login {found}`."
            )
    if not found:
        saved = SavedKeys.read()
        found, source = saved.default, str(saved.path)
    if not found:
        raise ConfigurationError(_missing("address", "url", URL_VARIABLE))
    if not found.startswith(("http://", "https://")):
        raise ConfigurationError(f"The address must begin with http:// or https://: {found}")
    return found.rstrip("/"), source


def _find_key(api_key: str | None, url: str) -> tuple[str | None, str]:
    found, source = _given(api_key, KEY_VARIABLE)
    if found:
        return found, source
    path, values = _read_file()
    in_file = values.get(KEY_VARIABLE)
    if in_file and values.get(URL_VARIABLE, url).rstrip("/") == url:
        return in_file, str(path)
    saved = SavedKeys.read()
    return saved.keys.get(url), str(saved.path)


def _given(argument: str | None, variable: str) -> tuple[str | None, str]:
    return (argument, "argument") if argument else (os.environ.get(variable), variable)


def checked_key(key: str) -> str:
    """The key, if a header can carry it.

    Raises:
        ConfigurationError: it cannot. The message does not show it.
    """
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError("The API key has characters that no key has.")
    return key


def masked(key: str) -> str:
    """A key without its secret: `drk_` and the public id, or its first letters."""
    public, _, secret = key.rpartition("_")
    return f"{public}_…" if public.startswith("drk_") and secret else f"{key[:4]}…"


def _missing(what: str, argument: str, variable: str) -> str:
    return (
        f"There is no {what}: give {argument}=…, set {variable}, save it with `darkroom login`, "
        f"or run inside a folder with {FILE}, which `make run` writes."
    )


def _is_own(file: Path) -> bool:
    try:
        return file.is_file() and (os.name == "nt" or file.stat().st_uid in (0, os.getuid()))
    except OSError:
        return False


def _read_file() -> tuple[Path | None, dict[str, str]]:
    """The nearest shell file of this user and its assignments: `export NAME=value`, one a line."""
    folders = (Path.cwd(), *Path.cwd().parents)
    path = next((folder / FILE for folder in folders if _is_own(folder / FILE)), None)
    if path is None:
        return None, {}
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
    return path, values
