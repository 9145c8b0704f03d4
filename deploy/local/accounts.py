"""Chooses the account for a server that refuses to run as root."""

import os
import pwd
import stat
import sys
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.process import Account


def unprivileged_account(data: Path, programs: Path) -> Account | None:
    """Who Postgres runs as: None (ourselves) unless we are root.

    As root it is the owner of the data folder, or ``nobody`` for a new one. Where folders on the
    way are closed to that account, such as ``/root``, it keeps the one capability to pass them;
    their modes are not changed.

    Raises:
        StackError: no account will do.
    """
    if os.geteuid() != 0:
        return None
    try:
        owner = data.stat().st_uid if data.exists() else 0
        entry = pwd.getpwuid(owner) if owner != 0 else pwd.getpwnam("nobody")
    except KeyError as error:
        raise StackError(
            "Postgres does not run as root and there is no account to run it as; "
            "start the stack as an ordinary user"
        ) from error
    override = not all(_may_pass(path, entry.pw_uid) for path in (data.parent, programs))
    if override and sys.platform != "linux":
        raise StackError(
            f"Postgres does not run as root, and the account {entry.pw_name} may not enter "
            f"{data.parent} or {programs}; start the stack as an ordinary user"
        )
    return Account(entry.pw_uid, entry.pw_gid, override)


def _may_pass(path: Path, user: int) -> bool:
    """Whether ``user``, in no particular group, may search ``path`` and all folders above it."""
    for folder in (path, *path.parents):
        found = folder.stat()
        needed = stat.S_IXUSR if found.st_uid == user else stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True
