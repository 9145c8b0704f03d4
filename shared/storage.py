"""Pictures in S3: keys, reads, writes, deletes and presigned URLs, through boto3 alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO
from uuid import UUID

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import StorageUnavailable
from shared.ids import to_wire
from shared.metrics.dependencies import s3_call
from shared.settings import Settings

EXTENSIONS = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}

_ONE_THREAD = TransferConfig(use_threads=False)
"""For files in parts: callers are in threads already."""


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
    """One bucket. Thread-safe, as boto3's low-level clients are."""

    def __init__(self, settings: Settings, max_connections: int = 16) -> None:
        self.bucket = settings.s3_bucket
        self._presign_ttl = int(settings.presign_ttl.total_seconds())
        self._client = _client(settings, settings.s3_endpoint, max_connections)
        public = settings.s3_public_endpoint
        self._presigner = _client(settings, public, 1) if public else self._client

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Write an object.

        Raises:
            StorageUnavailable: S3 refused or could not be reached, boto3's own retries included.
        """
        try:
            with s3_call("PutObject"):
                self._client.put_object(
                    Bucket=self.bucket,
                    Key=key,
                    Body=body,
                    ContentType=content_type,
                    CacheControl="private, max-age=31536000, immutable",
                )
        except (BotoCoreError, ClientError) as error:
            raise StorageUnavailable(f"writing to S3 failed: {_reason(error)}") from error

    def put_file(self, key: str, file: BinaryIO, content_type: str) -> None:
        """Write an object from a file of any length, in parts; boto3 closes the file.

        Raises:
            StorageUnavailable: S3 refused or could not be reached.
        """
        extra = {"ContentType": content_type}
        try:
            with s3_call("PutFile"):
                self._client.upload_fileobj(file, self.bucket, key, extra, Config=_ONE_THREAD)
        except (BotoCoreError, ClientError, S3UploadFailedError) as error:
            raise StorageUnavailable(f"writing to S3 failed: {_reason(error)}") from error

    def read_into(self, key: str, file: BinaryIO) -> None:
        """Read an object of any length into a file.

        Raises:
            ObjectMissing: there is none of that key.
            StorageUnavailable: S3 refused or could not be reached.
        """
        try:
            with s3_call("GetFile"):
                self._client.download_fileobj(self.bucket, key, file, Config=_ONE_THREAD)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in {"NoSuchKey", "404"}:
                raise ObjectMissing(key) from error
            raise StorageUnavailable(f"reading from S3 failed: {_reason(error)}") from error
        except BotoCoreError as error:
            raise StorageUnavailable(f"reading from S3 failed: {_reason(error)}") from error

    def get(self, key: str) -> StoredObject:
        """Read an object.

        Raises:
            ObjectMissing: there is none of that key.
            StorageUnavailable: S3 refused or could not be reached.
        """
        try:
            with s3_call("GetObject"):
                answer = self._client.get_object(Bucket=self.bucket, Key=key)
                return StoredObject(answer["Body"].read(), answer["ContentType"])
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in {"NoSuchKey", "404"}:
                raise ObjectMissing(key) from error
            raise StorageUnavailable(f"reading from S3 failed: {_reason(error)}") from error
        except BotoCoreError as error:
            raise StorageUnavailable(f"reading from S3 failed: {_reason(error)}") from error

    def delete(self, keys: Iterable[str]) -> int:
        """Delete objects; one that is not there counts as deleted. Returns how many were named.

        Raises:
            StorageUnavailable: S3 refused or could not be reached; some may be gone already.
        """
        names = list(keys)
        for start in range(0, len(names), 1000):  # S3's own limit per request
            chunk = [{"Key": key} for key in names[start : start + 1000]]
            try:
                with s3_call("DeleteObjects"):
                    answer = self._client.delete_objects(
                        Bucket=self.bucket, Delete={"Objects": chunk, "Quiet": True}
                    )
            except (BotoCoreError, ClientError) as error:
                raise StorageUnavailable(f"deleting from S3 failed: {_reason(error)}") from error
            if refused := answer.get("Errors"):  # S3 answers 200 even then
                raise StorageUnavailable(f"deleting from S3 failed: {refused[0].get('Code')}")
        return len(names)

    def list_keys(self, prefix: str) -> list[str]:
        """Every key under a prefix.

        Raises:
            StorageUnavailable: S3 refused or could not be reached.
        """
        pages = self._client.get_paginator("list_objects_v2")
        try:
            with s3_call("ListObjects"):
                return [
                    item["Key"]
                    for page in pages.paginate(Bucket=self.bucket, Prefix=prefix)
                    for item in page.get("Contents", ())
                ]
        except (BotoCoreError, ClientError) as error:
            raise StorageUnavailable(f"listing S3 failed: {_reason(error)}") from error

    def presign(self, key: str, download_name: str | None = None) -> str:
        """A URL that reads one object for a few minutes. Signed here; no request is made."""
        parameters: dict[str, Any] = {"Bucket": self.bucket, "Key": key}
        if download_name:
            parameters["ResponseContentDisposition"] = f'attachment; filename="{download_name}"'
        url: str = self._presigner.generate_presigned_url(
            "get_object", Params=parameters, ExpiresIn=self._presign_ttl
        )
        return url

    def check(self) -> None:
        """Ask for the bucket.

        Raises:
            StorageUnavailable: it does not exist, is forbidden, or S3 cannot be reached.
        """
        try:
            with s3_call("HeadBucket"):
                self._client.head_bucket(Bucket=self.bucket)
        except (BotoCoreError, ClientError) as error:
            raise StorageUnavailable(f"S3 does not answer: {_reason(error)}") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _client(settings: Settings, endpoint: str | None, max_connections: int) -> Any:
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=secret,
        config=Config(
            signature_version="s3v4",
            connect_timeout=2,
            read_timeout=20,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=max_connections,
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Not every S3-compatible store knows the newer checksum headers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _reason(error: Exception) -> str:
    """The cause without addresses or keys: it may reach a client."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "refused"))
    return type(error).__name__
