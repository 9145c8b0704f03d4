"""Quotas and scopes as values: what they allow, and how they are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from shared.core.quotas import NO_QUOTAS, Quotas
from shared.core.tenants import OPERATOR, RESOURCES, SCOPES, allows, may_give


def test_no_quotas_are_kept_as_null() -> None:
    assert NO_QUOTAS.stored() is None
    assert not NO_QUOTAS.limit_the_queue


@given(
    some.builds(
        Quotas,
        requests_per_minute=some.none() | some.integers(1, 1000),
        queued_cost=some.none() | some.integers(1, 10**12),
        concurrent_jobs=some.none() | some.integers(1, 1000),
        gpu_seconds_per_day=some.none() | some.floats(0.5, 1e6),
        max_pixels=some.none() | some.integers(4096, 4096 * 4096),
        models=some.none() | some.lists(some.text(max_size=8), max_size=3),
    )
)
def test_what_is_kept_is_read_again(quotas: Quotas) -> None:
    assert Quotas.model_validate(quotas.stored() or {}) == quotas


@pytest.mark.parametrize(
    "wrong",
    [{"concurrent_jobs": 0}, {"gpu_seconds_per_day": float("inf")}, {"queued_cost": -1},
     {"requests_per_minute": 1.5}, {"requests_per_hour": 1}, {"queued_cost": 2**53}],
)  # fmt: skip
def test_what_limits_nothing_or_everything_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Quotas.model_validate(wrong)


@pytest.mark.parametrize("resource", RESOURCES)
def test_a_resource_reads_and_writes_and_its_read_form_reads(resource: str) -> None:
    assert allows([resource], f"{resource}:read")
    assert allows([resource], f"{resource}:write")
    assert allows([f"{resource}:read"], f"{resource}:read")
    assert not allows([f"{resource}:read"], f"{resource}:write")


def test_admin_is_everything_within_its_tenant() -> None:
    assert all(allows(["admin"], f"{r}:{verb}") for r in RESOURCES for verb in ("read", "write"))
    assert all(allows(["admin:read"], f"{resource}:read") for resource in RESOURCES)
    assert not allows(["admin"], OPERATOR)


@given(some.sets(some.sampled_from(SCOPES)), some.sampled_from(SCOPES))
def test_nobody_gives_more_than_they_have(held: set[str], given_scope: str) -> None:
    """What a key made from `held` may do, its maker may do, unless the maker is an operator."""
    if OPERATOR in held or not may_give(held, given_scope):
        return
    needs = [f"{r}:{verb}" for r in RESOURCES for verb in ("read", "write")] + [OPERATOR]
    assert all(allows(held, need) for need in needs if allows([given_scope], need))
