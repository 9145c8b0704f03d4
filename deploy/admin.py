"""`darkroom-server admin …`: the operator's commands for tenants and API keys.

They work on the database of `DARKROOM_DATABASE_URL` as the tables' owner, for all tenants.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from deploy.tenant_data import DeletionTimedOut, NoSuchTenant, delete_tenant, export_tenant
from deploy.tenants import (
    NoSuchKey,
    create_key,
    create_tenant,
    list_keys,
    list_tenants,
    revoke_key,
    rotate_key,
    set_quotas,
)
from shared.core.errors import StorageUnavailable
from shared.core.quotas import Quotas
from shared.core.settings import SettingsError, get_settings
from shared.core.tenants import RESOURCES, SCOPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run one command; its result goes to stdout."""
    options = _parser().parse_args(arguments)
    try:
        url = get_settings().database_url.get_secret_value()
        result = options.run(url, options)
    except (
        *(NoSuchKey, NoSuchTenant, DeletionTimedOut, SettingsError, ValidationError),
        *(StorageUnavailable, redis.RedisError, OSError),
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OperationalError as error:
        print(f"error: the database does not answer: {error.orig}", file=sys.stderr)
        return 1
    _show(result, as_json=options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="darkroom-server admin", description=__doc__)
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    things = parser.add_subparsers(dest="thing", required=True)
    tenants = things.add_parser("tenants", help="teams").add_subparsers(dest="verb", required=True)
    make = tenants.add_parser("create", help="make a tenant")
    make.add_argument("name")
    make.set_defaults(run=lambda url, options: _create_tenant(url, options.name))
    remove = tenants.add_parser("delete", help="delete a tenant and all that is kept of it")
    remove.add_argument("name")
    remove.add_argument(
        "--yes-delete-everything", action="store_true", required=True, help="there is no way back"
    )
    remove.add_argument(
        "--wait",
        type=_seconds,
        metavar="SECONDS",
        default=timedelta(minutes=5),
        help="for its running jobs to stop; default: 300",
    )
    remove.set_defaults(
        run=lambda _, options: delete_tenant(get_settings(), options.name, options.wait)
    )
    every = tenants.add_parser("list", help="every tenant")
    every.set_defaults(run=lambda url, _: list_tenants(url))
    _add_key_commands(things.add_parser("keys", help="API keys"))
    export = things.add_parser("export", help="all that is kept of one tenant, as a ZIP file")
    export.add_argument("--tenant", required=True)
    export.add_argument("--to", required=True, type=Path, metavar="FILE")
    export.set_defaults(
        run=lambda _, options: export_tenant(get_settings(), options.tenant, options.to)
    )
    return parser


def _add_key_commands(parser: argparse.ArgumentParser) -> None:
    keys = parser.add_subparsers(dest="verb", required=True)
    create = keys.add_parser("create", help="make a key and print it, once")
    create.add_argument("--tenant", required=True, help="made on first use")
    create.add_argument("--name", required=True, help="what the key is for")
    create.add_argument(
        "--scope", action="append", choices=SCOPES, dest="scopes", help="default: all but operator"
    )
    create.add_argument("--expires-in", type=_days, metavar="DAYS", help="default: never")
    _add_quotas(create)
    create.set_defaults(run=_create_key)
    show = keys.add_parser("list", help="keys without their secrets")
    show.add_argument("--tenant")
    show.set_defaults(run=lambda url, options: list_keys(url, options.tenant))
    rotate = keys.add_parser("rotate", help="a new key for an old one, which ends after a while")
    rotate.add_argument("id")
    rotate.add_argument("--grace", type=_days, metavar="DAYS", default=timedelta(days=1))
    rotate.set_defaults(
        run=lambda url, options: {"key": rotate_key(url, options.id, options.grace)}
    )
    revoke = keys.add_parser("revoke", help="end a key now")
    revoke.add_argument("id")
    revoke.set_defaults(run=lambda url, options: _revoke_key(url, options.id))
    quotas = keys.add_parser("quotas", help="replace a key's quotas; without options, lift them")
    quotas.add_argument("id")
    _add_quotas(quotas)
    quotas.set_defaults(run=_set_quotas)


def _add_quotas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests-per-minute", type=int, metavar="N")
    parser.add_argument("--queued-cost", type=int, metavar="N", help="pixels × steps × images")
    parser.add_argument("--concurrent-jobs", type=int, metavar="N", help="queued or running")
    parser.add_argument("--gpu-seconds-per-day", type=float, metavar="S")
    parser.add_argument("--upload-bytes", type=int, metavar="N", help="initial images, batch files")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="width × height")
    parser.add_argument("--model", action="append", dest="models", help="may be repeated")


def _create_tenant(url: str, name: str) -> dict[str, Any]:
    create_tenant(url, name)
    return {"tenant": name}


def _create_key(url: str, options: argparse.Namespace) -> dict[str, Any]:
    key = create_key(
        url,
        tenant=options.tenant,
        name=options.name,
        scopes=options.scopes or RESOURCES,
        expires_at=datetime.now(UTC) + options.expires_in if options.expires_in else None,
        quotas=_quotas(options),
    )
    return {"key": key}


def _revoke_key(url: str, key_id: str) -> dict[str, Any]:
    revoke_key(url, key_id)
    return {"revoked": key_id}


def _set_quotas(url: str, options: argparse.Namespace) -> dict[str, Any]:
    quotas = _quotas(options)
    set_quotas(url, options.id, quotas)
    return {"id": options.id, "quotas": quotas.stored()}


def _quotas(options: argparse.Namespace) -> Quotas:
    return Quotas.model_validate({name: getattr(options, name) for name in Quotas.model_fields})


def _seconds(text: str) -> timedelta:
    return timedelta(seconds=float(text))


def _days(text: str) -> timedelta:
    return timedelta(days=float(text))


def _show(result: Any, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    rows = result if isinstance(result, list) else [result]
    for row in rows:
        if set(row) == {"key"}:
            print(row["key"])  # alone, so that a script can take it
        else:
            print("  ".join(f"{name}={_plain(value)}" for name, value in row.items()))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, dict):
        return ",".join(f"{name}:{_plain(item)}" for name, item in value.items())
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
