"""What `Storage` promises, against the real store."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from shared.errors import StorageUnavailable
from shared.settings import Settings
from shared.storage import ObjectMissing, Storage, signing_credentials
from tests.processes import free_port

UNKNOWN = "nobody/has/put/this.png"


def test_an_object_comes_back_with_its_type(storage: Storage) -> None:
    storage.put("kept/1/00.png", b"picture", "image/png")
    stored = storage.get("kept/1/00.png")
    assert (stored.body, stored.content_type) == (b"picture", "image/png")


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


def test_without_any_credentials_it_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    nobody = settings.model_copy(update={"s3_access_key": None, "s3_secret_key": None})
    with pytest.raises(StorageUnavailable, match="no credentials"):
        signing_credentials(nobody)
