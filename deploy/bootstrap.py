"""Create what a new installation lacks: `darkroom-server bootstrap --key-file FILE`.

Run after the migrations and before the API, which refuses to serve without an active key. It makes
the bucket where the store has none, and registers an API key that was made elsewhere (by
`deploy.docker.secrets` or `darkroom-server admin keys create`). Running it again changes nothing: a
key that has been revoked since stays so.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import OperationalError

from deploy.tenants import register_key
from shared.core.errors import StorageUnavailable
from shared.core.settings import Settings, SettingsError, get_settings
from shared.core.storage import Storage
from shared.core.tenants import RESOURCES

DEFAULT_TENANT = "studio"


def main(arguments: Sequence[str] | None = None) -> int:
    """Create the bucket and register the key; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        settings = get_settings()
        if ensure_bucket(settings):
            print(f"bucket {settings.s3_bucket}: made")
        if options.key_file is not None:
            register_key(
                settings.database_url.get_secret_value(),
                options.key_file.read_text("utf-8").strip(),
                tenant=options.tenant,
                name="bootstrap",
                scopes=RESOURCES,
            )
            print(f"key of the tenant {options.tenant}: registered")
    except (OSError, ValueError, SettingsError, StorageUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OperationalError as error:
        print(f"error: the database does not answer: {error.orig}", file=sys.stderr)
        return 1
    return 0


def ensure_bucket(settings: Settings) -> bool:
    """Make the bucket if it is missing; returns whether it was.

    Raises:
        StorageUnavailable: the store cannot be reached, or refuses.
    """
    storage = Storage(settings)
    try:
        storage.check()
    except StorageUnavailable:
        storage.make_bucket()
        storage.check()
        return True
    finally:
        storage.close()
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="darkroom-server bootstrap", description=__doc__)
    parser.add_argument("--key-file", type=Path, help="a file that holds an API key")
    parser.add_argument("--tenant", default=DEFAULT_TENANT, help=f"default: {DEFAULT_TENANT}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
