"""Images in S3: keys, reads, writes, deletes and presigned URLs, through boto3 alone."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, BinaryIO
from uuid import UUID

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as NotConnected

from shared.core.errors import StorageUnavailable
from shared.core.ids import encode_id
from shared.core.metrics import (
    KINDS_OF_S3_ERRORS,
    S3_ERRORS,
    S3_SECONDS,
    s3_call,
    s3_code,
    show_zeros,
)
from shared.core.s3 import FAILURES, UrlSigner, open_client, open_session
from shared.core.s3_limits import TooSlow, limited
from shared.core.settings import Settings

EXTENSIONS = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}
_PART_BYTES = 8 * 1024 * 1024

_DELETED_AT_ONCE = 1000
"""S3's own limit of a request."""

_TRANSFER = TransferConfig(
    multipart_threshold=_PART_BYTES,
    multipart_chunksize=_PART_BYTES,
    use_threads=False,  # callers are in threads already
    preferred_transfer_client="classic",
)


class ObjectMissing(Exception):
    """No object has that key."""


def job_folder(session_id: str, job_id: UUID) -> str:
    """What the keys of a job's objects begin with; the job's id carries 74 random bits, so that no
    key can be guessed."""
    return f"{session_id}/{encode_id('job', job_id)}/"


def image_key(session_id: str, job_id: UUID, attempt: int, index: int, content_type: str) -> str:
    """Where an attempt puts an image: its number keeps the key unique."""
    return f"{job_folder(session_id, job_id)}{attempt}/{index:02d}.{EXTENSIONS[content_type]}"


def thumbnail_key(image_key: str) -> str:
    """Where the thumbnail of an image lies: beside it."""
    return f"{image_key.rpartition('.')[0]}.thumb.webp"


def batch_file_key(file_id: UUID) -> str:
    """Where a file of prompts lies, from which batches are made."""
    return f"_batches/{encode_id('upl', file_id)}"


def lora_key(lora_id: UUID) -> str:
    """Where a tenant's LoRA lies."""
    return f"_loras/{encode_id('upl', lora_id)}.safetensors"


def upload_key(upload_id: UUID) -> str:
    """Where a client's image lies; no session id begins with an underscore."""
    return f"_uploads/{encode_id('upl', upload_id)}.png"


@dataclass(frozen=True)
class StoredObject:
    """An object's bytes and what S3 says of them."""

    body: bytes
    content_type: str


_OPERATIONS = ("PutObject", "PutFile", "GetObject", "GetFile", "DeleteObjects", "ListObjects")


class Storage:
    """One bucket. Thread-safe, as boto3's clients are.

    Every method but `presign` raises StorageUnavailable where S3 refuses, cannot be reached, or
    takes longer than `time_limit` for one operation, its retry included.
    """

    def __init__(
        self,
        settings: Settings,
        max_connections: int = 16,
        time_limit: timedelta = timedelta(minutes=1),
    ) -> None:
        self.bucket = settings.s3_bucket
        self._settings = settings
        self._seconds = time_limit.total_seconds()
        endpoint = settings.s3_public_endpoint or settings.s3_endpoint
        try:
            session, credentials = open_session(settings)
            self._client = open_client(session, settings, max_connections)
            self._signer = UrlSigner(session, settings, endpoint, credentials)
        except BotoCoreError as error:  # read by operators alone
            raise StorageUnavailable(f"S3 is not set up right: {error}") from error
        credentials.renew()
        show_zeros(S3_SECONDS, _OPERATIONS)
        show_zeros(S3_ERRORS, _OPERATIONS, KINDS_OF_S3_ERRORS)

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Write an object."""
        with self._call("PutObject", "writing to S3 failed"):
            self._client.put_object(
                Bucket=self.bucket,
                Key=key,
                Body=body,
                ContentType=content_type,
                CacheControl="private, max-age=31536000, immutable",
            )

    def put_file(self, key: str, file: BinaryIO, content_type: str) -> None:
        """Write an object from a file of any length, in parts; boto3 closes the file."""
        extra = {"ContentType": content_type}
        with self._call("PutFile", "writing to S3 failed"):
            self._client.upload_fileobj(file, self.bucket, key, extra, Config=_TRANSFER)

    def read_into(self, key: str, file: BinaryIO) -> None:
        """Read an object of any length into a file; each part has the time limit of its own.

        Raises:
            ObjectMissing: there is none of that key.
            OSError: the file cannot be written.
        """
        with self._call("GetFile", "reading from S3 failed", missing=key) as call:
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            for part in answer["Body"].iter_chunks(_PART_BYTES):
                file.write(part)
                call.renew()

    def get(self, key: str, span: range | None = None) -> StoredObject:
        """Read an object, or some of it: `range(0, 100)` are its first hundred bytes.

        A span that begins behind the object's end is StorageUnavailable (`InvalidRange`); one that
        ends there is cut.

        Raises:
            ObjectMissing: there is none of that key.
        """
        options = {} if span is None else {"Range": f"bytes={span.start}-{span.stop - 1}"}
        with self._call("GetObject", "reading from S3 failed", missing=key):
            answer = self._client.get_object(Bucket=self.bucket, Key=key, **options)
            body: bytes = answer["Body"].read()
        if span is not None and "ContentRange" not in answer:  # a store that knows no ranges
            body = body[span.start : span.stop]
        return StoredObject(body, answer.get("ContentType", "application/octet-stream"))

    def delete(self, keys: Iterable[str]) -> int:
        """Delete objects; one that is not there counts as deleted. Returns how many were named.

        When it fails, some may be gone already.
        """
        names = list(keys)
        for start in range(0, len(names), _DELETED_AT_ONCE):
            self._delete(names[start : start + _DELETED_AT_ONCE])
        return len(names)

    def _delete(self, keys: Sequence[str]) -> None:
        objects = [{"Key": key} for key in keys]
        with self._call("DeleteObjects", "deleting from S3 failed"):
            answer = self._client.delete_objects(
                Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}
            )
        # S3 answers 200 even then.
        if codes := {str(each.get("Code")) for each in answer.get("Errors", ())} - {"NoSuchKey"}:
            raise StorageUnavailable(f"deleting from S3 failed: {', '.join(sorted(codes))}")

    def list_keys(self, prefix: str) -> list[str]:
        """Every key that begins with `prefix`."""
        pages = self._client.get_paginator("list_objects_v2")
        with self._call("ListObjects", "listing S3 failed"):
            return [
                item["Key"]
                for page in pages.paginate(Bucket=self.bucket, Prefix=prefix)
                for item in page.get("Contents", ())
            ]

    def presign(self, key: str, download_name: str | None = None) -> str:
        """A URL that reads one object for a few minutes. Signed here; no request is made.

        Raises:
            StorageUnavailable: there are no credentials.
        """
        try:
            return self._signer.sign(key, download_name)
        except FAILURES as error:
            raise StorageUnavailable(f"signing for S3 failed: {_reason(error)}") from error

    def check(self) -> None:
        """Ask for the bucket: it exists, and its keys may be listed."""
        with self._call("ListObjects", "S3 does not answer"):
            self._client.list_objects_v2(Bucket=self.bucket, Prefix="_health/", MaxKeys=1)

    def make_bucket(self) -> None:
        """Make the bucket, where the client's region is."""
        region = self._client.meta.region_name
        # AWS takes its oldest region for granted and refuses to hear it named.
        named = self._settings.s3_endpoint is None and region != "us-east-1"
        place = {"CreateBucketConfiguration": {"LocationConstraint": region}} if named else {}
        with self._call("CreateBucket", "the bucket cannot be made"):
            self._client.create_bucket(Bucket=self.bucket, **place)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def _call(self, operation: str, failed: str, missing: str | None = None) -> Iterator[Any]:
        """Measure and limit one call, and say what its failure means.

        `missing` is the key that may not be there. A bucket that is not there says nothing of it.
        """
        try:
            with s3_call(operation), limited(self._seconds) as call:
                yield call
        except FAILURES as error:
            if missing is not None and s3_code(error) in ("NoSuchKey", "404"):
                raise ObjectMissing(missing) from error
            raise StorageUnavailable(f"{failed}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The cause without addresses or keys: it may reach a client."""
    if isinstance(error, ClientError):
        return s3_code(error) or "refused"
    if isinstance(error, NotConnected | HTTPClientError | IncompleteReadError | TooSlow):
        return "no answer"
    return type(error).__name__
