# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""The service itself: keys, models, health, workers and queues."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from darkroom import encoding
from darkroom._sync.concurrency import in_thread
from darkroom._sync.resource import Pages, Resource
from darkroom._sync.transport import Request
from darkroom.encoding import Identified
from darkroom.types.requests import FileSource
from darkroom.types.service import (
    Health,
    Key,
    Lora,
    Model,
    NewKey,
    ProblemType,
    QueueDepth,
    Readiness,
    Root,
    UploadedLora,
    Worker,
)

_HALF_A_SECOND = timedelta(seconds=0.5)
"""How much a time in whole seconds is behind on average."""


class Keys(Resource):
    """`client.keys`: the tenant's API keys. Needs the scope `admin`."""

    _path = "/v1/keys"

    def create(
        self,
        name: str,
        *,
        scopes: Iterable[str],
        tenant: str | None = None,
        expires_at: datetime | None = None,
        quotas: Mapping[str, Any] | None = None,
    ) -> NewKey:
        """Make a key; `key` is shown only once. It cannot have scopes that you lack.

        Args:
            name: what it is for.
            scopes: `jobs` reads and writes, `jobs:read` reads; `admin` is everything in a tenant.
            tenant: one other than your own; needs the scope `operator`.
            expires_at: with a time zone, and no later than your own key expires. None: together
                with your key, or never.
            quotas: limits, see `Quotas`.
        """
        fields = {
            "name": name,
            "scopes": scopes,
            "tenant": tenant,
            "expires_at": expires_at,
            "quotas": quotas,
        }
        return self._post(NewKey, self._path, json=fields)

    def list(self, *, page_size: int | None = None, after: str | None = None) -> Pages[Key]:
        """Keys without their secrets, including those that have ended."""
        return self._list(Key, self._path, page_size=page_size, after=after)

    def revoke(self, key: str | Identified) -> None:
        """Revoke it permanently; it takes effect everywhere within five seconds."""
        self._transport.send(Request("DELETE", self._at(key)))


class Loras(Resource):
    """`client.loras`: the LoRAs that jobs may name."""

    _path = "/v1/loras"

    def list(self) -> Pages[Lora]:
        """The server's catalogue, with trigger words, and what your tenant uploaded."""
        return self._list(Lora, self._path)

    def create(
        self, file: FileSource, *, name: str, family: str, trigger_words: Iterable[str] = ()
    ) -> UploadedLora:
        """Upload a safetensors file. Needs the scope `loras`, and a server that allows it.

        Raises:
            LoraRefused: it is not a LoRA for that family; `detail` says why.
            LoraExists: the name is taken.
            LoraUploadsDisabled: the server takes none.
        """
        sent = in_thread(encoding.read_file, file)
        fields = {"name": name, "family": family, "trigger_words": ",".join(trigger_words)}
        request = Request("POST", self._path, data=fields, files={"file": sent})
        return self._transport.fetch(UploadedLora, request)

    def delete(self, name: str) -> None:
        """Delete one of your tenant's own.

        Raises:
            JobNotFinished: an unfinished job needs it.
        """
        self._transport.send(Request("DELETE", self._at(name)))


class Models(Resource):
    """`client.models`."""

    def list(self) -> Pages[Model]:
        """Models with their defaults and limits, and the workers that serve them."""
        return self._list(Model, "/v1/models")


class HealthChecks(Resource):
    """`client.health`."""

    def live(self) -> Health:
        """Is the process up? Sent once, without retries."""
        return self._transport.fetch(Health, self._once("/healthz"))

    def ready(self) -> Readiness:
        """Can it serve requests? Sent once, without retries.

        Raises:
            NotReady: `errors` names the parts that are down.
        """
        return self._transport.fetch(Readiness, self._once("/readyz"))

    def clock_skew(self) -> float | None:
        """Seconds by which the service's clock is ahead of this machine's.

        Taken from the `Date` header, so accurate to about a second. None without it.
        """
        sent = datetime.now(UTC)
        answer = self._transport.send(self._once("/healthz"))
        middle = sent + (datetime.now(UTC) - sent) / 2
        try:
            received = parsedate_to_datetime(answer.headers.get("date", ""))
        except ValueError:
            return None
        return (received.astimezone(UTC) + _HALF_A_SECOND - middle).total_seconds()

    def root(self) -> Root:
        """The name, version and main links of the service."""
        return self._get(Root, "/")

    def problem(self, code: str) -> ProblemType:
        """What an error code means."""
        return self._get(ProblemType, f"/problems/{encoding.segment(code)}")

    def _once(self, path: str) -> Request:
        return Request("GET", path, retry_timeout=0.0)


class Workers(Resource):
    """`client.workers`, by name. They serve all tenants, so this needs the scope `operator`."""

    _path = "/v1/workers"

    def list(self) -> Pages[Worker]:
        """Live workers by name, and absent ones that will drain when they return."""
        return self._list(Worker, self._path)

    def get(self, worker: str) -> Worker:
        """One worker; once `drain.drained_at` is set it can be stopped."""
        return self._get(Worker, self._at(worker))

    def drain(self, worker: str) -> Worker:
        """Let it finish its jobs and take no more. Idempotent."""
        return self._post(Worker, self._at(worker, "drain"), repeatable=True)

    def resume(self, worker: str) -> Worker:
        """Undo a drain. Idempotent."""
        return self._post(Worker, self._at(worker, "resume"), repeatable=True)


class Queues(Resource):
    """`client.queues`: of all tenants, so this needs the scope `operator`."""

    def list(self) -> Pages[QueueDepth]:
        """Both queue classes of every model, including empty ones."""
        return self._list(QueueDepth, "/v1/queues")
