"""Put tables of tenants behind the second wall (`shared.core.tenants`), and take them out."""

import sqlalchemy as sa
from alembic import op

from shared.core.tenants import ROLE, TENANT


class WallRoleMissing(Exception):
    """The role of the wall is not there, and who runs the migration may not make it."""

    def __init__(self, owner: str) -> None:
        super().__init__(
            f"The database role {owner} may not become {ROLE}, which row-level security needs, "
            f"and may not create it. Have a database administrator run, once: "
            f'CREATE ROLE {ROLE} NOLOGIN; GRANT {ROLE} TO "{owner}"; then migrate again.'
        )


def raise_wall(table: str, tenant: str = "tenant_id") -> None:
    """For a table with the tenant in a column, whose name is `tenant`."""
    # nullif: a setting that was local to an ended transaction stays behind as an empty string.
    _raise(table, f"{tenant} = nullif(current_setting('{TENANT}', true), '')::uuid")


def raise_wall_behind(table: str, parent: str, reference: str) -> None:
    """For a table whose column `reference` has ids of `parent`, which stands behind the wall."""
    # Inside, the parent's own policy applies: it shows the tenant's rows alone.
    seen = f"EXISTS (SELECT 1 FROM {parent} WHERE {parent}.id = {table}.{reference})"  # noqa: S608
    _raise(table, seen)


def raise_wall_against_tenants(table: str) -> None:
    """For a table of the operator's, of which a tenant's transaction sees nothing."""
    _raise(table, "false")


def lower_wall(table: str) -> None:
    """Undo any of them."""
    op.execute(f"DROP POLICY tenant_wall ON {table}")
    op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute(f"REVOKE ALL ON {table} FROM {ROLE}")


def ensure_role() -> None:
    """Make the wall's role, which belongs to the whole server, and be a member of it.

    Raises:
        WallRoleMissing: it must be made by an administrator.
    """
    connection = op.get_bind()
    owner = str(connection.scalar(sa.text("SELECT current_user")))
    is_member = sa.text("SELECT pg_has_role(oid, 'MEMBER') FROM pg_roles WHERE rolname = :role")
    known = connection.scalar(is_member, {"role": ROLE})
    if known:
        return
    try:
        with connection.begin_nested():
            if known is None:
                connection.execute(sa.text(f"CREATE ROLE {ROLE} NOLOGIN"))
            connection.execute(sa.text(f'GRANT {ROLE} TO "{owner}"'))
    except sa.exc.ProgrammingError as refused:
        raise WallRoleMissing(owner) from refused


def _raise(table: str, condition: str) -> None:
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY tenant_wall ON {table} TO {ROLE}"
        f" USING ({condition}) WITH CHECK ({condition})"
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {ROLE}")
