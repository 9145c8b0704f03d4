"""Make the secrets of a Compose stack: `python -m deploy.docker.secrets [FOLDER]`.

Needs Python 3.11 and no package. One file for each secret, random, in a folder that only its owner
may enter; the files themselves can be read by all, because a container's user is another than
yours. A file that is there is kept: running it again adds what is missing and changes nothing.
"""

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from shared.core.keys import new_key

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "secrets"


def _random() -> str:
    return secrets.token_urlsafe(32)  # needs no quoting in a URL


_MAKERS: Mapping[str, Callable[[Mapping[str, str]], str]] = {
    # The superuser of the database server; Darkroom never uses it.
    "postgres_password": lambda _: _random(),
    "database_password": lambda _: _random(),
    "redis_password": lambda _: _random(),
    "grafana_password": lambda _: _random(),
    # Named as the settings they are (`shared.core.settings` reads them from /run/secrets).
    "darkroom_database_url": lambda values: (
        f"postgresql://darkroom:{values['database_password']}@postgres:5432/darkroom"
    ),
    "darkroom_redis_url": lambda values: f"redis://:{values['redis_password']}@redis:6379/0",
    "darkroom_s3_access_key": lambda _: secrets.token_hex(10),
    "darkroom_s3_secret_key": lambda _: _random(),
    "darkroom_metrics_token": lambda _: _random(),
    # The first API key; `deploy.bootstrap` tells the database of it.
    "darkroom_api_key": lambda _: new_key().key,
}
NAMES = tuple(_MAKERS)


def make_secrets(folder: Path) -> list[str]:
    """Make those that are missing; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    values: dict[str, str] = {}
    new_names = []
    for name, maker in _MAKERS.items():
        path = folder / name
        if path.exists():
            values[name] = path.read_text("utf-8").strip()
            continue
        values[name] = maker(values)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(values[name] + "\n")
        new_names.append(name)
    return new_names


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    for new in make_secrets(chosen):
        print(chosen / new)
