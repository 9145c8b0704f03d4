"""Pictures in S3: keys, reads, writes, deletes and presigned URLs, through obstore alone.

obstore is the Rust crate `object_store` behind a thin layer of Python. A write takes an eighth of
boto3's time on the CPU and leaves the interpreter's lock to other threads, and a presigned URL a
thirtieth (docs/adr/0017-object-storage.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, BinaryIO
from uuid import UUID

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store

from shared.errors import StorageUnavailable
from shared.ids import to_wire
from shared.metrics.dependencies import s3_call, s3_code
from shared.settings import Settings

EXTENSIONS = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}

_PART_BYTES = 8 * 1024 * 1024

_FAILURES = (BaseError, FileNotFoundError)


class ObjectMissing(Exception):
    """No object has that key."""


def image_key(session_id: str, job_id: UUID, attempt: int, index: int, content_type: str) -> str:
    """Where an attempt puts a picture: the session is the folder, the attempt keeps it unique.

    The job's id carries 74 random bits, so a key cannot be guessed.
    """
    folder = f"{session_id}/{to_wire('job', job_id)}/{attempt}"
    return f"{folder}/{index:02d}.{EXTENSIONS[content_type]}"


def thumbnail_key(picture_key: str) -> str:
    """Where the thumbnail of a picture lies: beside it."""
    return f"{picture_key.rpartition('.')[0]}.thumb.webp"


def batch_file_key(file_id: UUID) -> str:
    """Where a file of prompts lies, from which batches are made."""
    return f"_batches/{to_wire('upl', file_id)}"


def upload_key(upload_id: UUID) -> str:
    """Where a client's picture lies; no session id begins with an underscore."""
    return f"_uploads/{to_wire('upl', upload_id)}.png"


@dataclass(frozen=True)
class StoredObject:
    """An object's bytes and what S3 says of them."""

    body: bytes
    content_type: str


class Storage:
    """One bucket. Thread-safe."""

    def __init__(self, settings: Settings, max_connections: int = 16) -> None:
        self.bucket = settings.s3_bucket
        self._settings = settings
        self._credentials: Any = None
        self._store = _open(settings, settings.s3_endpoint, max_connections)
        public = settings.s3_public_endpoint
        self._presigner = _open(settings, public, 1) if public else self._store

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Write an object.

        Raises:
            StorageUnavailable: S3 refused or could not be reached, the library's retry included.
        """
        attributes = {
            "Content-Type": content_type,
            "Cache-Control": "private, max-age=31536000, immutable",
        }
        try:
            with s3_call("PutObject"):
                obstore.put(self._store, key, body, attributes=attributes, use_multipart=False)
        except _FAILURES as error:
            raise StorageUnavailable(f"writing to S3 failed: {_reason(error)}") from error

    def put_file(self, key: str, file: BinaryIO, content_type: str) -> None:
        """Write an object from a file of any length, in parts.

        Raises:
            StorageUnavailable: S3 refused or could not be reached.
        """
        attributes = {"Content-Type": content_type}
        try:
            with s3_call("PutFile"):
                obstore.put(self._store, key, file, attributes=attributes, chunk_size=_PART_BYTES)
        except _FAILURES as error:
            raise StorageUnavailable(f"writing to S3 failed: {_reason(error)}") from error

    def read_into(self, key: str, file: BinaryIO) -> None:
        """Read an object of any length into a file.

        Raises:
            ObjectMissing: there is none of that key.
            StorageUnavailable: S3 refused or could not be reached.
        """
        try:
            with s3_call("GetFile"):
                for part in obstore.get(self._store, key).stream(min_chunk_size=_PART_BYTES):
                    file.write(part)
        except _FAILURES as error:
            raise _unread(key, error) from error

    def get(self, key: str) -> StoredObject:
        """Read an object.

        Raises:
            ObjectMissing: there is none of that key.
            StorageUnavailable: S3 refused or could not be reached.
        """
        try:
            with s3_call("GetObject"):
                answer = obstore.get(self._store, key)
                kind = answer.attributes.get("Content-Type", "application/octet-stream")
                return StoredObject(bytes(answer.bytes()), kind)
        except _FAILURES as error:
            raise _unread(key, error) from error

    def delete(self, keys: Iterable[str]) -> int:
        """Delete objects; one that is not there counts as deleted. Returns how many were named.

        Raises:
            StorageUnavailable: S3 refused or could not be reached; some may be gone already.
        """
        names = list(keys)
        try:
            if names:
                with s3_call("DeleteObjects"):
                    obstore.delete(self._store, names)
        except _FAILURES as error:
            raise StorageUnavailable(f"deleting from S3 failed: {_reason(error)}") from error
        return len(names)

    def list_keys(self, prefix: str) -> list[str]:
        """Every key that begins with `prefix`.

        Raises:
            StorageUnavailable: S3 refused or could not be reached.
        """
        # The library lists folders: whole ones between slashes.
        folder = prefix.rpartition("/")[0]
        try:
            with s3_call("ListObjects"):
                return [
                    item["path"]
                    for page in obstore.list(self._store, folder or None)
                    for item in page
                    if item["path"].startswith(prefix)
                ]
        except _FAILURES as error:
            raise StorageUnavailable(f"listing S3 failed: {_reason(error)}") from error

    def presign(self, key: str, download_name: str | None = None) -> str:
        """A URL that reads one object for a few minutes. Signed here; no request is made."""
        url: str = obstore.sign(self._presigner, "GET", key, self._settings.presign_ttl)
        if download_name is None:
            return url
        if self._credentials is None:
            self._credentials = signing_credentials(self._settings)
        return _sign_download(
            url.partition("?")[0], download_name, self._settings, self._credentials
        )

    def check(self) -> None:
        """Ask for the bucket.

        Raises:
            StorageUnavailable: it does not exist, is forbidden, or S3 cannot be reached.
        """
        try:
            with s3_call("ListObjects"):
                obstore.list_with_delimiter(self._store, "_health")
        except _FAILURES as error:
            raise StorageUnavailable(f"S3 does not answer: {_reason(error)}") from error

    def close(self) -> None:
        """Nothing to do: connections close with the last use of the object."""


def _open(settings: Settings, endpoint: str | None, max_connections: int) -> S3Store:
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None
    given: dict[str, Any] = {
        "endpoint": endpoint,
        "access_key_id": settings.s3_access_key,
        "secret_access_key": secret,
    }
    return S3Store(
        settings.s3_bucket,
        region=settings.s3_region,
        virtual_hosted_style_request=endpoint is None and "." not in settings.s3_bucket,
        **{name: value for name, value in given.items() if value is not None},
        client_options={
            "allow_http": endpoint is not None and endpoint.startswith("http:"),
            "connect_timeout": timedelta(seconds=2),
            "read_timeout": timedelta(seconds=20),
            "timeout": timedelta(minutes=2),
            "pool_max_idle_per_host": str(max_connections),
        },
        retry_config={"max_retries": 1, "retry_timeout": timedelta(minutes=1)},
    )


def signing_credentials(settings: Settings) -> Any:
    """botocore's credentials, for what obstore cannot sign: the settings', or the environment's.

    Those of a role renew themselves; to look for them may take a request.

    Raises:
        StorageUnavailable: there are none.
    """
    from botocore.credentials import Credentials
    from botocore.session import Session

    if settings.s3_access_key and settings.s3_secret_key:
        return Credentials(settings.s3_access_key, settings.s3_secret_key.get_secret_value())
    found = Session().get_credentials()
    if found is None:
        raise StorageUnavailable("there are no credentials for S3")
    return found


def _sign_download(url: str, name: str, settings: Settings, credentials: Any) -> str:
    """`url`, signed so that S3 answers with this file name. Imported late: it takes 6 MB."""
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest

    asked = {"response-content-disposition": f'attachment; filename="{name}"'}
    request = AWSRequest("GET", url, params=asked)
    seconds = int(settings.presign_ttl.total_seconds())
    S3SigV4QueryAuth(credentials, "s3", settings.s3_region, expires=seconds).add_auth(request)
    signed: str = request.prepare().url
    return signed


def _unread(key: str, error: Exception) -> Exception:
    """What a failed read means. A bucket that is not there says nothing of its objects."""
    if isinstance(error, FileNotFoundError | NotFoundError) and s3_code(error) != "NoSuchBucket":
        return ObjectMissing(key)
    return StorageUnavailable(f"reading from S3 failed: {_reason(error)}")


def _reason(error: Exception) -> str:
    """The cause without addresses or keys: it may reach a client."""
    return s3_code(error) or "no answer"
