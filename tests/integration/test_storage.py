"""What `Storage` promises, against the real store."""

import http.client
import http.server
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx2
import pytest
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from pydantic import SecretStr

from shared.core.errors import StorageUnavailable
from shared.core.s3 import LateCredentials
from shared.core.settings import Settings
from shared.core.storage import ObjectMissing, Storage
from tests.processes import free_port, wait_until

UNKNOWN = "nobody/has/put/this.png"


def test_an_object_comes_back_with_its_type(storage: Storage) -> None:
    storage.put("kept/1/00.png", b"image", "image/png")
    stored = storage.get("kept/1/00.png")
    assert (stored.body, stored.content_type) == (b"image", "image/png")


@pytest.mark.parametrize("size", [0, 5, 20_000_000], ids=["empty", "small", "in parts"])
def test_a_file_of_any_length_goes_there_and_back(storage: Storage, size: int) -> None:
    body = (b"0123456789" * (size // 10 + 1))[:size]
    storage.put_file("kept/file", io.BytesIO(body), "application/x-ndjson")
    read = io.BytesIO()
    storage.read_into("kept/file", read)
    assert read.getvalue() == body


def test_keys_are_listed_by_the_letters_they_begin_with(storage: Storage) -> None:
    keys = ["listed/job_1/00.png", "listed/job_1/00.thumb.webp", "listed/job_12/00.png"]
    for key in keys:
        storage.put(key, b"x", "image/png")
    assert sorted(storage.list_keys("listed/job_1/00.")) == keys[:2]
    assert sorted(storage.list_keys("listed/job_1")) == keys
    assert storage.list_keys("listed/job_12/") == keys[2:]
    assert storage.list_keys("listed/job_3/") == []
    assert storage.delete([*keys, "listed/never/there.png"]) == 4
    assert storage.list_keys("listed/") == []


def read_file(storage: Storage) -> None:
    storage.read_into(UNKNOWN, io.BytesIO())


@pytest.mark.parametrize("read", [lambda storage: storage.get(UNKNOWN), read_file])
def test_an_unknown_key_is_missing(storage: Storage, read: Callable[[Storage], Any]) -> None:
    with pytest.raises(ObjectMissing):
        read(storage)


@pytest.mark.parametrize(
    "act",
    [
        lambda storage: storage.get(UNKNOWN),
        read_file,
        lambda storage: storage.put(UNKNOWN, b"x", "image/png"),
        lambda storage: storage.put_file(UNKNOWN, io.BytesIO(b"x"), "image/png"),
        lambda storage: storage.list_keys("a/"),
        lambda storage: storage.check(),
    ],
    ids=["get", "read_into", "put", "put_file", "list_keys", "check"],
)
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"s3_bucket": "no-such-bucket"}, "NoSuchBucket"),
        ({"s3_secret_key": SecretStr("not the key")}, "SignatureDoesNotMatch"),
        ({"s3_endpoint": "nobody"}, "no answer"),
    ],
    ids=["bucket", "key", "address"],
)
def test_a_store_that_refuses_is_unavailable_and_says_why_without_its_address(
    settings: Settings, changed: dict[str, Any], reason: str, act: Callable[[Storage], Any]
) -> None:
    if changed.get("s3_endpoint") == "nobody":
        changed = {"s3_endpoint": f"http://127.0.0.1:{free_port()}"}
    with pytest.raises(StorageUnavailable) as refused:
        act(Storage(settings.model_copy(update=changed)))
    assert str(refused.value).endswith(f": {reason}")
    assert "127.0.0.1" not in str(refused.value)


def test_a_span_of_an_object(storage: Storage) -> None:
    storage.put("kept/span.png", b"0123456789", "image/png")
    assert storage.get("kept/span.png", range(2, 5)).body == b"234"
    assert storage.get("kept/span.png", range(8, 100)).body == b"89"
    assert storage.get("kept/span.png", range(2, 5)).content_type == "image/png"
    with pytest.raises(StorageUnavailable, match="InvalidRange"):
        storage.get("kept/span.png", range(10, 12))
    with pytest.raises(ObjectMissing):
        storage.get(UNKNOWN, range(1))


def test_many_keys_go_in_groups(storage: Storage) -> None:
    storage.put("grouped/last", b"x", "image/png")
    assert (
        storage.delete([*(f"grouped/{number}" for number in range(1200)), "grouped/last"]) == 1201
    )
    assert storage.list_keys("grouped/") == []


# URLs ----------------------------------------------------------------------------------------


def test_a_url_reads_the_object_also_under_a_name(storage: Storage) -> None:
    key = "kept/a b~c+ü (1).png"
    storage.put(key, b"image", "image/png")
    for name in (None, "an image.png"):
        answer = httpx2.get(storage.presign(key, name), trust_env=False)
        assert (answer.status_code, answer.content) == (200, b"image")
    other = storage.presign(key).replace("ab", "cd")
    assert httpx2.get(other[:-4] + "0000", trust_env=False).status_code == 403


@pytest.mark.parametrize(
    ("endpoint", "bucket", "config"),
    [
        (None, "darkroom", ""),
        (None, "dark.room", ""),
        (None, "darkroom", "region = cn-north-1"),
        (None, "darkroom", "use_dualstack_endpoint = true"),
        ("https://s3.example:8443/prefix", "darkroom", ""),
        ("https://s3.example", "darkroom", "s3 =\n  addressing_style = virtual"),
    ],
)
@pytest.mark.parametrize("token", [None, "a/session+token=="])
def test_a_url_is_the_one_that_boto3_would_sign(  # noqa: PLR0917
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    endpoint: str | None,
    bucket: str,
    config: str,
    token: str | None,
) -> None:
    use_config(monkeypatch, tmp_path, f"[default]\n{config}\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    named = {"s3_endpoint": "http://127.0.0.1:9", "s3_public_endpoint": endpoint}
    given = named if endpoint else {"s3_endpoint": None, "s3_public_endpoint": None}
    storage = Storage(of_boto(settings, s3_bucket=bucket, **given))
    region = None if "region" in config else "us-east-1"
    client = boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        config=Config(signature_version="s3v4"),
    )
    key = "s/job_1/1/a b~+ü.png"
    asked = {"Bucket": bucket, "Key": key}
    named_so = {"ResponseContentDisposition": 'attachment; filename="x y.png"'}
    for parameters, name in ((asked, None), (asked | named_so, "x y.png")):

        def both(parameters: Any = parameters, name: str | None = name) -> tuple[Any, Any]:
            theirs = client.generate_presigned_url("get_object", parameters, ExpiresIn=900)
            return parsed(storage.presign(key, name)), parsed(theirs)

        pairs = (both() for _ in range(10))
        ours, theirs = next(p for p in pairs if p[0][2]["X-Amz-Date"] == p[1][2]["X-Amz-Date"])
        assert ours == theirs


def parsed(url: str) -> tuple[str, str, dict[str, list[str]]]:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", parts.path, parse_qs(parts.query)


# Credentials ---------------------------------------------------------------------------------


def of_boto(settings: Settings, **changed: Any) -> Settings:
    """Settings that leave credentials and region to boto3."""
    none = {"s3_access_key": None, "s3_secret_key": None, "s3_region": None}
    return settings.model_copy(update=none | changed)


def use_config(monkeypatch: pytest.MonkeyPatch, folder: Path, config: str) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    (folder / "config").write_text(config, "utf-8")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def keys_of(settings: Settings) -> tuple[str, str]:
    assert settings.s3_access_key is not None
    assert settings.s3_secret_key is not None
    return settings.s3_access_key, settings.s3_secret_key.get_secret_value()


def process_line(folder: Path, key: str, secret: str) -> str:
    answer = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret}
    (folder / "answer.json").write_text(json.dumps(answer), "utf-8")
    return f"credential_process = cat {folder}/answer.json"


def test_a_profile_with_a_process_gives_credentials_and_endpoint(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    process = process_line(tmp_path, *keys_of(settings))
    config = f"[profile studio]\nregion = us-east-1\nendpoint_url = {settings.s3_endpoint}\n"
    use_config(monkeypatch, tmp_path, f"{config}{process}\n")
    monkeypatch.setenv("AWS_PROFILE", "studio")
    storage = Storage(of_boto(settings, s3_endpoint=None))
    storage.put("kept/profile.png", b"x", "image/png")
    assert httpx2.get(storage.presign("kept/profile.png"), trust_env=False).content == b"x"


def test_a_chain_of_roles_gives_credentials(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, secret = keys_of(settings)
    ends = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    role = (
        '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>'
        f"<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
        f"<SessionToken>t</SessionToken><Expiration>{ends}</Expiration></Credentials>"
        "</AssumeRoleResult></AssumeRoleResponse>"
    )
    chain = (
        f"[profile base]\n{process_line(tmp_path, 'first', 'secret')}\n"
        "[profile middle]\nrole_arn = arn:aws:iam::1:role/middle\nsource_profile = base\n"
        "[profile last]\nrole_arn = arn:aws:iam::1:role/last\nsource_profile = middle\n"
    )
    use_config(monkeypatch, tmp_path, chain)
    monkeypatch.setenv("AWS_PROFILE", "last")
    with a_server(role.encode()) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        storage = Storage(of_boto(settings))
        storage.put("kept/role.png", b"x", "image/png")
        assert storage.get("kept/role.png").body == b"x"
        assert "X-Amz-Security-Token=t" in storage.presign("kept/role.png")
    assert [b"%2Fmiddle" in sts.bodies[0], b"%2Flast" in sts.bodies[1]] == [True, True]
    assert len(sts.bodies) == 2, "signing and requests share what was found"


def test_without_any_credentials_it_says_so_until_there_are_some(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_config(monkeypatch, tmp_path, "")
    storage = Storage(of_boto(settings))
    for act in (storage.check, lambda: storage.presign(UNKNOWN)):
        with pytest.raises(StorageUnavailable, match="NoCredentialsError"):
            act()
    key, secret = keys_of(settings)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    storage.check()
    assert storage.presign(UNKNOWN)


def test_signing_does_not_wait_while_credentials_are_renewed() -> None:
    may_end = threading.Event()
    renewals: list[Any] = []

    def ending(seconds: float) -> dict[str, str]:
        expiry = datetime.now(UTC) + timedelta(seconds=seconds)
        name = f"key{len(renewals)}"
        values = {"access_key": name, "secret_key": "s", "token": "t"}
        return values | {"expiry_time": expiry.isoformat()}

    def renew() -> dict[str, str]:
        renewals.append(1)
        assert may_end.wait(30)
        return ending(3600)

    first = RefreshableCredentials.create_from_metadata(ending(3600), renew, "test")
    credentials = LateCredentials(lambda: first)
    assert credentials.get_frozen_credentials().access_key == "key0"
    first._expiry_time = datetime.now(UTC) + timedelta(minutes=5)
    assert [credentials.at_hand().access_key for _ in range(3)] == ["key0"] * 3
    may_end.set()
    wait_until(lambda: credentials.at_hand().access_key == "key1", 10, "the new credentials")
    assert len(renewals) == 1


def test_an_unknown_profile_is_told_at_the_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_config(monkeypatch, tmp_path, "")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageUnavailable, match="nobody"):
        Storage(of_boto(settings))


# Stores that hang, trickle, or are old ------------------------------------------------------


class AServer:
    """Answers every POST with one body and keeps what it was sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []


@contextmanager
def a_server(answer: bytes) -> Iterator[AServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            known.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            known.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known = AServer(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()


def test_deletions_carry_the_checksum_that_old_stores_ask_for(settings: Settings) -> None:
    with a_server(b"<DeleteResult/>") as store:
        Storage(settings.model_copy(update={"s3_endpoint": store.url})).delete(["a", "b"])
    assert "content-md5" in store.headers[0]
    assert b"<Key>b</Key>" in store.bodies[0]


def test_what_a_store_refuses_to_delete_is_told(settings: Settings) -> None:
    refusal = b"<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code></Error></DeleteResult>"
    with (
        a_server(refusal) as store,
        pytest.raises(StorageUnavailable, match="deleting from S3 failed: AccessDenied"),
    ):
        Storage(settings.model_copy(update={"s3_endpoint": store.url})).delete(["a"])


OBJECT = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


@contextmanager
def a_trickle(head: bytes, drop: bytes) -> Iterator[str]:
    """A store that answers every request with `head` and then, for ever, a `drop` at a time."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(head)
                while not over.wait(0.2):
                    connection.sendall(drop)
            except OSError:
                pass

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()  # or it might go on to accept on what has this descriptor next
        listener.close()


@pytest.mark.long
@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (OBJECT + b"Content-Length: 1000000\r\n\r\n", b"x"),
        (OBJECT + b"Connection: close\r\n\r\n", b"x"),
        (OBJECT + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silence", "header", "body", "body without a length", "chunks"],
)
def test_a_call_ends_with_its_time_whatever_trickles_in(
    settings: Settings, head: bytes, drop: bytes
) -> None:
    with a_trickle(head, drop) as url:
        changed = settings.model_copy(update={"s3_endpoint": url})
        slow = Storage(changed, time_limit=timedelta(seconds=1.5))
        for act in (lambda: slow.get(UNKNOWN), lambda: slow.put("a/b.png", b"x", "image/png")):
            if drop == b"x" and b"Length" in head and act.__code__.co_names[0] == "put":
                continue
            begun = time.monotonic()
            with pytest.raises(StorageUnavailable, match="no answer"):
                act()
            assert time.monotonic() - begun < 15, "the sockets' own timeouts are 20 s"


def test_a_large_body_may_take_longer_than_connecting_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is the call's; boto3 alone would give it the time of connecting."""
    monkeypatch.setattr("shared.core.s3._CONNECT_SECONDS", 1)
    body = b"x" * 12_000_000  # more than the sockets hold
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as sent:
                threading.Event().wait(1.25)
                sent.readline()
                length = http.client.parse_headers(sent)["content-length"]
                sent.read(int(length))  # to its end: a close before that takes the answer back
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n')

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        begun = time.monotonic()
        Storage(settings.model_copy(update={"s3_endpoint": url})).put("a", body, "image/png")
        assert time.monotonic() - begun > 1, "or it shows nothing"
