"""boto3's client of S3, as Darkroom needs it: lean, bounded in time, with cheap signed URLs.

Whatever boto3 knows of configuration and credentials holds here, too: environment, profiles, SSO,
role chains, `credential_process`, container and machine roles. See docs/adr/0011-object-storage.md.
"""

import base64
import gzip
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import boto3
from botocore.auth import S3SigV4QueryAuth
from botocore.config import Config
from botocore.credentials import Credentials, create_credential_resolver
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.loaders import JSONFileLoader, Loader
from botocore.session import Session

from shared.core.s3_limits import limit_client
from shared.core.settings import Settings

FAILURES = (BotoCoreError, ClientError)
"""What boto3 raises where S3 refuses, does not answer, or cannot be asked."""

_CONNECT_SECONDS = 2
_READ_SECONDS = 20
_RENEWAL_WAIT = 2.0
_RENEWAL_PAUSE = 30.0


class LateCredentials(Credentials):  # type: ignore[misc]
    """boto3's credentials, looked up with the first use, and again where there were none.

    To find or renew them may take requests or a process. `get_frozen_credentials` waits for that;
    `at_hand`, for signing on an event loop, does not while there are some that hold.
    """

    def __init__(self, find: Callable[[], Any]) -> None:
        super().__init__("", "", method="late")
        self._find = find
        self._found: Any = None
        self._frozen: Any = None
        self._finding, self._renewing = threading.Lock(), threading.Lock()
        self._renewal: Future[Any] | None = None
        self._begun = 0.0

    def load_credentials(self) -> "LateCredentials":
        """These: what a session asks its provider of credentials for."""
        return self

    def get_frozen_credentials(self) -> Any:
        """Credentials that hold for minutes.

        Raises:
            BotoCoreError: there are none, or they cannot be renewed.
            ClientError: AWS refuses the role.
        """
        with self._finding:
            if self._found is None:
                self._found = self._find()
        if self._found is None:
            raise NoCredentialsError
        self._frozen = self._found.get_frozen_credentials()
        return self._frozen

    def get_deferred_property(self, property_name: str) -> Callable[[], Any]:  # noqa: ARG002
        """An account's id is no part of an address in S3."""
        return lambda: None

    def at_hand(self) -> Any:
        """The credentials last used; those that near their end are renewed in the background.

        Raises:
            BotoCoreError: there are none that hold.
            ClientError: AWS refuses the role.
        """
        if self._frozen is not None and not self._ends_within(None):
            return self._frozen
        renewal = self.renew()
        if self._frozen is not None and not self._ends_within(0):
            return self._frozen
        try:
            return renewal.result(max(0.0, self._begun + _RENEWAL_WAIT - time.monotonic()))
        except TimeoutError:
            raise NoCredentialsError from None

    def renew(self) -> "Future[Any]":
        """Look for credentials in the background, unless that is under way or has just failed."""
        with self._renewing:
            now = time.monotonic()
            last = self._renewal
            if last is None or (
                last.done() and (last.exception() is None or now > self._begun + _RENEWAL_PAUSE)
            ):
                self._renewal, self._begun = last, _ = Future(), now
                threading.Thread(target=self._run, args=(last,), daemon=True).start()
            return last

    def _run(self, renewal: "Future[Any]") -> None:
        try:
            renewal.set_result(self.get_frozen_credentials())
        except BaseException as error:
            renewal.set_exception(error)

    def _ends_within(self, seconds: int | None) -> bool:
        """None: within the time in which botocore renews."""
        needed = getattr(self._found, "refresh_needed", None)
        return needed is not None and bool(needed(seconds))


class UrlSigner:
    """Presigned GETs of one bucket. The same URLs as boto3's, at a small part of the time.

    boto3 is asked once how it addresses and signs the bucket (path or host, region, endpoint); each
    further URL takes one hash and one HMAC over what the URLs of a second share.
    """

    def __init__(
        self, session: boto3.Session, settings: Settings, endpoint: str | None, credentials: Any
    ) -> None:
        self._credentials = credentials
        self._expires = int(settings.presign_ttl.total_seconds())
        example_keys: dict[str, Any] = {"aws_access_key_id": "-", "aws_secret_access_key": "-"}
        client = _boto_client(session, endpoint, **example_keys)
        example = client.generate_presigned_url(
            "get_object", Params={"Bucket": settings.s3_bucket, "Key": "_"}
        )
        client.close()
        parts = urlsplit(example)
        self._origin, self._host = f"{parts.scheme}://{parts.netloc}", parts.netloc
        self._folder = parts.path.removesuffix("_")
        scope = parse_qs(parts.query)["X-Amz-Credential"][0]
        self._region, self._service = scope.split("/")[2:4]
        self._kept: _Shared | None = None

    def sign(self, key: str, download_name: str | None = None) -> str:
        """A URL that reads `key`, under a file name where one is given.

        Raises:
            BotoCoreError: there are no credentials.
            ClientError: AWS refuses the role.
        """
        shared = self._shared(self._credentials.at_hand(), f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        query = shared.query
        if download_name:
            disposition = f'attachment; filename="{download_name}"'
            query += f"&response-content-disposition={quote(disposition, safe='~')}"
        path = self._folder + quote(key, safe="/~")
        canonical = f"GET\n{path}\n{query}\nhost:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        signature = hmac.digest(shared.key, f"{shared.preamble}{digest}".encode(), "sha256").hex()
        return f"{self._origin}{path}?{query}&X-Amz-Signature={signature}"

    def _shared(self, credentials: Any, moment: str) -> "_Shared":
        kept = self._kept
        if kept is None or kept.moment != moment or kept.credentials is not credentials:
            kept = self._kept = self._prepare(credentials, moment)
        return kept

    def _prepare(self, credentials: Any, moment: str) -> "_Shared":
        signer = S3SigV4QueryAuth(credentials, self._service, self._region)
        request = SimpleNamespace(context={"timestamp": moment})
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": signer.scope(request),
            "X-Amz-Date": moment,
            "X-Amz-Expires": str(self._expires),
            "X-Amz-Security-Token": credentials.token,
            "X-Amz-SignedHeaders": "host",
        }
        key = f"AWS4{credentials.secret_key}".encode()
        for part in (moment[:8], self._region, self._service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return _Shared(
            credentials,
            moment,
            urlencode({k: v for k, v in query.items() if v}, quote_via=quote, safe="~"),
            f"AWS4-HMAC-SHA256\n{moment}\n{signer.credential_scope(request)}\n",
            key,
        )


@dataclass(frozen=True)
class _Shared:
    """What the URLs of one second have in common, which is most of the work."""

    credentials: Any
    moment: str
    query: str
    preamble: str
    """Of the string to sign."""
    key: bytes
    """To sign with."""


def open_session(settings: Settings) -> tuple[boto3.Session, LateCredentials]:
    """A session that reads the description of S3 without its prose, and finds credentials late."""
    core = Session()
    core.register_component("data_loader", _LeanLoader())
    # Named for the session, so that STS and SSO, too, know where to ask.
    region = settings.s3_region or core.get_config_variable("region") or "us-east-1"
    core.set_config_variable("region", region)
    key, secret = settings.s3_access_key, settings.s3_secret_key

    def find() -> Any:
        if key and secret:
            return Credentials(key, secret.get_secret_value())
        return create_credential_resolver(core).load_credentials()

    credentials = LateCredentials(find)
    core.register_component("credential_provider", credentials)
    return boto3.Session(botocore_session=core), credentials


def open_client(session: boto3.Session, settings: Settings, max_connections: int) -> Any:
    """boto3's client, with the limits of time that `s3_limits.limited` sets."""
    client = _boto_client(session, settings.s3_endpoint, max_connections)
    limit_client(client)
    client.meta.events.register("before-sign.s3.DeleteObjects", _add_md5)
    return client


def _boto_client(
    session: boto3.Session, endpoint: str | None, max_connections: int = 1, **explicit: Any
) -> Any:
    return session.client(
        "s3",
        endpoint_url=endpoint,
        **explicit,
        config=Config(
            signature_version="s3v4",
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=max_connections,
            # Not every S3-compatible store knows the newer headers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _add_md5(request: Any, **_: Any) -> None:
    """Deletions carry a CRC32 since 2025; older and other stores ask for what went before it."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


class _LeanFiles(JSONFileLoader):  # type: ignore[misc]
    """Leaves out the prose, three quarters of a description, as it reads."""

    def load_file(self, file_path: str) -> Any:
        for path, opened in ((f"{file_path}.json", open), (f"{file_path}.json.gz", gzip.open)):
            if Path(path).is_file():
                with opened(path, "rb") as file:
                    return json.load(file, object_pairs_hook=_without_prose)
        return None


class _LeanLoader(Loader):  # type: ignore[misc]
    FILE_LOADER_CLASS = _LeanFiles


def _without_prose(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {
        name: "" if name == "documentation" and isinstance(value, str) else value
        for name, value in pairs
    }
