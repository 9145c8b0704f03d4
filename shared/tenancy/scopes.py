"""What an API key may do: scopes, and who may give which."""

from collections.abc import Collection

RESOURCES = ("jobs", "images", "search", "batches", "webhooks", "admin")
OPERATOR = "operator"
"""May make keys of any tenant. Not part of `admin`; the local stack's first key has it."""

SCOPES = (*RESOURCES, *(f"{resource}:read" for resource in RESOURCES), OPERATOR)
"""A resource's name allows reading and writing it; `jobs:read` allows reading alone. `admin`
allows everything within its tenant, `admin:read` reading everything."""


def name_of(needed: str) -> str:
    """The scope to ask for: `jobs` for `jobs:write`, `jobs:read` as it is."""
    return needed.removesuffix(":write")


def allows(held: Collection[str], needed: str) -> bool:
    """Whether these scopes cover `resource:read`, `resource:write` or `operator`."""
    if needed == OPERATOR:
        return OPERATOR in held
    resource, _, verb = needed.partition(":")
    enough = {resource, "admin"}
    if verb == "read":
        enough |= {f"{resource}:read", "admin:read"}
    return not enough.isdisjoint(held)


def may_give(held: Collection[str], given: str) -> bool:
    """Whether a key with these scopes may make or revoke one with the scope `given`: what it has,
    and no more.
    """
    needed = given if given == OPERATOR or given.endswith(":read") else f"{given}:write"
    return OPERATOR in held or allows(held, needed)
