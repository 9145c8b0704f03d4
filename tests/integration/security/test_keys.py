"""API keys over HTTP: made, listed, revoked; nobody gives more than they have."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, text

from shared.core.keys import parse_key
from shared.core.quotas import Quotas
from tests.integration.security.conftest import MakeClient
from tests.processes import ApiProcess

KEY = {"name": "a new key", "scopes": ["jobs"]}


def test_a_new_key_works_is_shown_once_and_can_be_revoked(
    guarded: ApiProcess, client_with: MakeClient, engine: Engine
) -> None:
    admin = client_with(scopes=["admin"])
    made = admin.post("/v1/keys", json=KEY)
    assert made.status_code == 201
    new = made.json()
    parsed = parse_key(new["key"])
    assert parsed is not None
    assert parsed.id == new["id"]
    assert (new["tenant"], new["scopes"], new["quotas"]) == ("keyring", ["jobs"], None)
    with guarded.client(new["key"]) as theirs:
        assert theirs.get("/v1/jobs").status_code == 200
        listed = {key["id"]: key for key in admin.get("/v1/keys?limit=200").json()["data"]}
        assert listed[new["id"]]["last_used_at"] is not None
        assert new["key"] not in admin.get("/v1/keys?limit=200").text
        with engine.connect() as connection:
            row = connection.execute(
                text("SELECT * FROM api_keys WHERE id = :id"), {"id": new["id"]}
            ).one()
        assert row.secret_hash == parsed.secret_hash
        assert new["key"] not in str(row)
        for _ in range(2):
            assert admin.delete(f"/v1/keys/{new['id']}").status_code == 204
        assert theirs.get("/v1/jobs").status_code == 401


def test_an_expired_key_is_refused(client_with: MakeClient) -> None:
    past = client_with(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert past.get("/v1/jobs").json()["code"] == "unauthenticated"
    admin = client_with(scopes=["admin"])
    refused = admin.post("/v1/keys", json={**KEY, "expires_at": "2001-01-01T00:00:00Z"})
    assert refused.json()["errors"][0] == {
        "pointer": "/expires_at",
        "parameter": None,
        "code": "in_the_past",
        "message": "The key would have expired already.",
    }


def test_lists_have_pages_and_no_one_elses_keys(client_with: MakeClient) -> None:
    admin, stranger = (client_with(scopes=["admin"], tenant=name) for name in ("pages", "others"))
    ids = {admin.post("/v1/keys", json=KEY).json()["id"] for _ in range(4)}
    seen, after = [], None
    while True:
        page = admin.get("/v1/keys", params={"limit": 2, "after": after} if after else {"limit": 2})
        seen += [key["id"] for key in page.json()["data"]]
        after = page.json()["next_cursor"]
        if after is None:
            break
    assert ids < set(seen)
    assert len(seen) == len(set(seen)) == 5
    assert ids.isdisjoint(key["id"] for key in stranger.get("/v1/keys").json()["data"])
    assert stranger.delete(f"/v1/keys/{ids.pop()}").status_code == 404
    cursor = admin.get("/v1/keys?limit=2").json()["next_cursor"]
    assert stranger.get("/v1/keys", params={"after": cursor}).json()["code"] == "malformed_cursor"


@pytest.mark.parametrize(
    ("scopes", "asked"),
    [
        (["admin"], {"scopes": ["operator"]}),
        (["admin"], {"tenant": "somebody else"}),
        (["admin:read"], {}),
        (["jobs"], {}),
    ],
)
def test_nobody_gives_more_than_they_have(
    client_with: MakeClient, engine: Engine, scopes: list[str], asked: dict[str, Any]
) -> None:
    refused = client_with(scopes=scopes).post("/v1/keys", json={**KEY, **asked})
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
    with engine.connect() as connection:
        made = connection.execute(text("SELECT 1 FROM tenants WHERE name = 'somebody else'"))
        assert made.one_or_none() is None


def test_a_key_with_quotas_makes_no_keys(client_with: MakeClient) -> None:
    bound = client_with(scopes=["admin"], quotas=Quotas(concurrent_jobs=5))
    assert bound.post("/v1/keys", json=KEY).json()["code"] == "insufficient_scope"


def test_a_key_makes_none_that_outlives_it(client_with: MakeClient) -> None:
    end = (datetime.now(UTC) + timedelta(days=2)).replace(microsecond=0)
    for scopes in (["admin"], ["admin", "operator"]):
        expiring = client_with(scopes=scopes, expires_at=end)
        later = {**KEY, "expires_at": (end + timedelta(seconds=1)).isoformat()}
        refused = expiring.post("/v1/keys", json=later)
        assert refused.status_code == 422
        [error] = refused.json()["errors"]
        assert (error["pointer"], error["code"]) == ("/expires_at", "outlives_maker")
        sooner = {**KEY, "expires_at": (end - timedelta(days=1)).isoformat()}
        assert expiring.post("/v1/keys", json=sooner).status_code == 201
        for open_ended in (KEY, {**KEY, "expires_at": None}):
            made = expiring.post("/v1/keys", json=open_ended).json()
            assert datetime.fromisoformat(made["expires_at"]) == end
    forever = client_with(scopes=["admin"]).post("/v1/keys", json=KEY).json()
    assert forever["expires_at"] is None


def test_a_key_revokes_none_that_is_more_than_itself(
    guarded: ApiProcess, client_with: MakeClient
) -> None:
    def make(**fields: Any) -> tuple[httpx2.Client, str]:
        client = client_with(tenant="revokers", **fields)
        return client, client.get("/v1/usage").json()["key_id"]

    operator, operator_id = make(scopes=["admin", "operator"])
    admin, admin_id = make(scopes=["admin"])
    guest, guest_id = make(scopes=["admin"], expires_at=datetime.now(UTC) + timedelta(days=1))
    bound, bound_id = make(scopes=["admin"], quotas=Quotas(concurrent_jobs=5))
    refused = [(admin, operator_id), (guest, admin_id), (guest, operator_id)]
    refused += [(bound, key_id) for key_id in (operator_id, admin_id, guest_id)]
    for client, key_id in refused:
        answer = client.delete(f"/v1/keys/{key_id}")
        assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    live = (operator, admin, guest, bound)
    assert [client.get("/v1/usage").status_code for client in live] == [200] * 4
    allowed = [(bound, bound_id), (admin, guest_id), (operator, admin_id)]
    assert [client.delete(f"/v1/keys/{key_id}").status_code for client, key_id in allowed] == (
        [204] * 3
    )


def test_an_operator_makes_keys_of_other_tenants(
    guarded: ApiProcess, client_with: MakeClient
) -> None:
    operator = client_with(scopes=["admin", "operator"])
    made = operator.post("/v1/keys", json={**KEY, "tenant": "new team", "scopes": ["admin"]})
    assert made.status_code == 201
    with guarded.client(made.json()["key"]) as theirs:
        keys = theirs.get("/v1/keys").json()["data"]
        assert [(key["id"], key["tenant"]) for key in keys] == [(made.json()["id"], "new team")]


@pytest.mark.parametrize(
    ("scope", "reads", "writes"),
    [("jobs", 200, 202), ("jobs:read", 200, 403), ("images", 403, 403), ("admin:read", 200, 403)],
)
def test_scopes_have_read_only_forms(
    client_with: MakeClient, scope: str, reads: int, writes: int
) -> None:
    client = client_with(scopes=[scope])
    assert client.get("/v1/jobs").status_code == reads
    body = {"prompt": "a red circle"}
    assert client.post("/v1/jobs", json=body).status_code == writes
