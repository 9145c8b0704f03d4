"""Row-level security for tables of tenants (`shared.core.tenants`)."""

import sqlalchemy as sa
from alembic import op

from shared.core.tenants import ROLE, TENANT


class RoleMissing(Exception):
    """The role that row-level security needs is missing, and the migration may not make it."""

    def __init__(self, owner: str) -> None:
        super().__init__(
            f"The database role {owner} may not become {ROLE}, which row-level security needs, "
            f"and may not create it. Have a database administrator run, once: "
            f'CREATE ROLE {ROLE} NOLOGIN; GRANT {ROLE} TO "{owner}"; then migrate again.'
        )


def enable_rls(table: str, tenant: str = "tenant_id") -> None:
    """For a table with the tenant in a column, whose name is `tenant`."""
    # nullif: a setting that was local to an ended transaction stays behind as an empty string.
    _enable(table, f"{tenant} = nullif(current_setting('{TENANT}', true), '')::uuid")


def enable_rls_by_parent(table: str, parent: str, reference: str) -> None:
    """For a table whose column `reference` has ids of `parent`, which has row-level security."""
    # Inside, the parent's own policy applies: it shows the tenant's rows alone.
    seen = f"EXISTS (SELECT 1 FROM {parent} WHERE {parent}.id = {table}.{reference})"  # noqa: S608
    _enable(table, seen)


def enable_rls_of_operator(table: str) -> None:
    """For a table of the operator's, of which a tenant's transaction sees nothing."""
    _enable(table, "false")


def disable_rls(table: str) -> None:
    """Undo any of them."""
    op.execute(f"DROP POLICY tenant_wall ON {table}")
    op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute(f"REVOKE ALL ON {table} FROM {ROLE}")


def ensure_role() -> None:
    """Make the role of tenants' transactions, which belongs to the whole server; be its member.

    Raises:
        RoleMissing: it must be made by an administrator.
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
        raise RoleMissing(owner) from refused


def _enable(table: str, condition: str) -> None:
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY tenant_wall ON {table} TO {ROLE}"
        f" USING ({condition}) WITH CHECK ({condition})"
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {ROLE}")
