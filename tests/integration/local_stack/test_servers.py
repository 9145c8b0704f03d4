"""The embedded servers: each the real thing, and as durable as it says."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx2
import psycopg
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local.host import (
    PortTakenError,
    ServerFailedError,
    choose_port,
    is_free,
    port_from_environment,
)
from deploy.local.servers import EmbeddedServers
from deploy.local.service import Server
from tests.processes import wait_until

Ending = Callable[[Server], None]
ENDINGS: list[Ending] = [Server.stop, Server.kill]


def s3_client(servers: EmbeddedServers) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=servers.s3_endpoint,
        aws_access_key_id=servers.s3_access_key,
        aws_secret_access_key=servers.s3_secret_key,
        region_name=servers.s3_region,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


def test_postgres_has_pgvector_and_an_owner_without_superpowers(servers: EmbeddedServers) -> None:
    with psycopg.connect(servers.database_url) as connection:
        distance = connection.execute("SELECT '[1,0]'::vector <=> '[0,1]'::vector").fetchone()
        superuser = connection.execute("SELECT current_setting('is_superuser')").fetchone()
    assert distance == (1.0,)
    assert superuser == ("off",)


def test_the_owner_can_make_a_database_to_restore_a_backup_into(servers: EmbeddedServers) -> None:
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
    with psycopg.connect(servers.database_url.removesuffix("darkroom") + "restored") as restored:
        assert restored.execute("SELECT '[1]'::vector <=> '[1]'::vector").fetchone() == (0.0,)


def test_postgres_asks_for_the_password(servers: EmbeddedServers) -> None:
    wrong = servers.database_url.replace(servers.home.secrets.postgres, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


@pytest.mark.parametrize("end", ENDINGS)
def test_postgres_keeps_what_was_committed(servers: EmbeddedServers, end: Ending) -> None:
    port = servers.postgres.port
    with psycopg.connect(servers.database_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (how text)")
        connection.execute("INSERT INTO kept VALUES (%s)", (end.__name__,))
    end(servers.postgres)
    assert not servers.postgres.running
    servers.postgres.start()
    with psycopg.connect(servers.database_url) as connection:
        kept = connection.execute("SELECT how FROM kept WHERE how = %s", (end.__name__,)).fetchall()
    assert kept == [(end.__name__,)]
    assert servers.postgres.port == port


def test_a_database_of_its_own_for_a_test(servers: EmbeddedServers) -> None:
    url = servers.postgres.create_database("throwaway")
    connection = psycopg.connect(url)
    assert connection.execute("SELECT '[1]'::vector::text").fetchone() == ("[1]",)
    servers.postgres.drop_database("throwaway")
    with pytest.raises(psycopg.errors.AdminShutdown):  # it ended the open connection
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_redis_asks_for_the_password(servers: EmbeddedServers) -> None:
    with (
        redis.Redis(port=servers.redis.port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_redis_keeps_its_keys_over_a_clean_stop(servers: EmbeddedServers) -> None:
    with redis.Redis.from_url(servers.redis_url) as client:
        client.set("kept", "yes")
    servers.redis.restart()
    with redis.Redis.from_url(servers.redis_url) as client:
        assert client.get("kept") == b"yes"


def test_redis_keeps_over_a_kill_what_reached_its_file(servers: EmbeddedServers) -> None:
    with redis.Redis.from_url(servers.redis_url) as client:
        # While what came before is on its way to the disk, Redis keeps the next in memory.
        wait_until(lambda: not client.info("persistence")["aof_pending_bio_fsync"])
        client.set("killed", "yes")
    servers.redis.kill()
    servers.redis.start()
    with redis.Redis.from_url(servers.redis_url) as client:
        # A kill of the process loses nothing that was answered: only a power cut costs a second.
        assert client.get("killed") == b"yes"


def test_flush_empties_redis(servers: EmbeddedServers) -> None:
    with redis.Redis.from_url(servers.redis_url) as client:
        client.set("gone", "soon")
        servers.redis.flush()
        assert client.dbsize() == 0


@pytest.mark.parametrize("end", ENDINGS)
def test_s3_keeps_objects_and_their_type(servers: EmbeddedServers, end: Ending) -> None:
    key = f"session/{end.__name__}.webp"
    s3_client(servers).put_object(
        Bucket=servers.s3_bucket, Key=key, Body=b"bytes", ContentType="image/webp"
    )
    end(servers.s3)
    servers.s3.start()
    found = s3_client(servers).get_object(Bucket=servers.s3_bucket, Key=key)
    assert found["Body"].read() == b"bytes"
    assert found["ContentType"] == "image/webp"


def test_s3_serves_presigned_urls_and_refuses_changed_ones(servers: EmbeddedServers) -> None:
    client = s3_client(servers)
    client.put_object(Bucket=servers.s3_bucket, Key="a/b.png", Body=b"image")
    url = client.generate_presigned_url(
        "get_object", Params={"Bucket": servers.s3_bucket, "Key": "a/b.png"}
    )
    assert httpx2.get(url, timeout=60).content == b"image"
    assert httpx2.get(url.replace("b.png", "c.png"), timeout=60).status_code == 403
    assert httpx2.get(url.partition("?")[0], timeout=60).status_code == 400  # not signed at all


def test_s3_keeps_the_bucket_when_its_last_object_goes(servers: EmbeddedServers) -> None:
    client = s3_client(servers)
    client.put_object(Bucket=servers.s3_bucket, Key="only/one.png", Body=b"image")
    client.delete_object(Bucket=servers.s3_bucket, Key="only/one.png")
    client.head_bucket(Bucket=servers.s3_bucket)
    with pytest.raises(ClientError, match="404"):
        client.head_object(Bucket=servers.s3_bucket, Key="only/one.png")


def test_a_dead_server_says_why(servers: EmbeddedServers) -> None:
    servers.redis.stop()
    config = servers.home.path / "redis" / "redis.conf"
    servers.redis.prepare()
    broken = config.read_text() + "no-such-setting 1\n"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(servers.redis, "prepare", lambda: config.write_text(broken))
            with pytest.raises(ServerFailedError, match=r"redis ended with exit code 1.*\n.*") as e:
                servers.redis.start()
        assert "no-such-setting" in str(e.value)
    finally:
        servers.redis.start()


def test_two_homes_side_by_side(
    servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A space in the path, since some home folders have one.
    other_home = tmp_path_factory.mktemp("other") / "a home"
    with EmbeddedServers(other_home, durable=False) as other:
        with redis.Redis.from_url(servers.redis_url) as client:
            client.set("whose", "first")
        with redis.Redis.from_url(other.redis_url) as client:
            assert client.get("whose") is None
        with psycopg.connect(other.database_url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert {s.port for s in other.all}.isdisjoint({s.port for s in servers.all})
        s3_client(other).head_bucket(Bucket=other.s3_bucket)
    assert not any(server.running for server in other.all)
    assert all(server.running for server in servers.all)


# --- Ports: what the user asked for is kept or refused, the rest moves out of the way ---


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", choose_port())) as other:
        yield other.getsockname()[1]


def test_a_port_that_was_asked_for_and_is_taken_is_named(
    home: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_REDIS_PORT", str(taken))
    with pytest.raises(
        PortTakenError, match=f"port {taken} is taken .* DARKROOM_REDIS_PORT=<port>"
    ):
        EmbeddedServers(home, default_ports=True)
    monkeypatch.delenv("DARKROOM_REDIS_PORT")
    EmbeddedServers(home).close()  # the refusal let go of the lock


def test_a_port_that_was_asked_for_is_used_and_remembered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = choose_port()
    monkeypatch.setenv("DARKROOM_S3_PORT", str(wanted))
    first = EmbeddedServers(home, default_ports=True)
    first.close()
    monkeypatch.delenv("DARKROOM_S3_PORT")
    second = EmbeddedServers(home, default_ports=True)
    second.close()
    assert [first.s3.port, second.s3.port] == [wanted, wanted]


def test_a_remembered_port_that_is_taken_meanwhile_is_left_to_its_owner(home: Path) -> None:
    first = EmbeddedServers(home)
    first.close()
    with socket.create_server(("127.0.0.1", first.redis.port)):
        second = EmbeddedServers(home)
        second.close()
    assert second.redis.port != first.redis.port
    assert second.s3.port == first.s3.port


@pytest.mark.parametrize("value", ["http", "0", "65536", "-1", "80.5"])
def test_what_is_no_port_is_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_PORT", value)
    with pytest.raises(PortTakenError, match="is not a port number between 1 and 65535"):
        port_from_environment("DARKROOM_PORT")


def test_free_and_taken_are_told_apart(taken: int) -> None:
    assert not is_free(taken)
    assert is_free(choose_port())
