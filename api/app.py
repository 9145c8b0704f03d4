"""The API process: `uvicorn api.app:create_app --factory`."""

import gc
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import Depends, FastAPI
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import async_sessionmaker
from starlette.middleware.cors import CORSMiddleware

from api.admin.keys import require_live_key
from api.admin.routes import keys, loras, models
from api.admin.routes import router as fleet
from api.admin.service import QueueDepths
from api.batches.file_formats import MAX_BYTES as MAX_BATCH_BYTES
from api.batches.outputs import router as outputs
from api.batches.routes import router as batches
from api.compat.a1111.routes import router as a1111
from api.compat.huggingface import router as huggingface
from api.compat.mcp import routes as mcp
from api.compat.openai.routes import router as openai
from api.context import Resources
from api.core.auth import InTurn
from api.core.errors import HANDLED, handle
from api.core.fairness import FairSemaphores, OpenAnswers
from api.core.health import router as health
from api.core.health import unlisted_router as unlisted
from api.core.limits import BodyLimits
from api.core.live_workers import LiveWorkers
from api.core.metrics import watch_routes
from api.core.middleware import HeadAsGet, RequestEnvelope, RequestObserver
from api.core.openapi import install_openapi
from api.core.pages import DocumentBytes
from api.core.pages import router as pages
from api.core.principal import KeyCache
from api.core.publisher import AT_ONCE, CircuitBreaker, JobPublisher
from api.core.serialization import refuse_unknown_parameters
from api.core.streams import Openings
from api.images.routes import files as image_files
from api.images.routes import gallery, sessions, uploads
from api.images.routes import router as images
from api.jobs.admission import LoadShedding
from api.jobs.estimates import Estimates
from api.jobs.followers import Following
from api.jobs.init_images import ImageFetcher
from api.jobs.prompt_filters import PromptFilters
from api.jobs.receipt_routes import router as receipts
from api.jobs.routes import gallery as job_gallery
from api.jobs.routes import loras as own_loras
from api.jobs.routes import router as jobs
from api.jobs.sse_routes import router as streams
from api.jobs.submit import SubmissionGroups
from api.search.embedding import QueryVectors
from api.search.history_routes import router as history
from api.search.routes import recommendations_router as prompts
from api.search.routes import router as search
from api.search.service import TermStatisticsCache
from api.webhooks.routes import router as webhooks
from shared.core.broker import celery_app
from shared.core.database import open_async_engine
from shared.core.filters import find_filters
from shared.core.logging import configure_logging
from shared.core.metrics import MetricsListener
from shared.core.model_catalog import CatalogError, families_of, load_catalog
from shared.core.quotas import RequestRates
from shared.core.redis_clients import open_async_redis
from shared.core.settings import Settings, SettingsError, darkroom_version, get_settings
from shared.core.storage import Storage
from shared.core.telemetry import configure_tracing, shut_down_tracing
from shared.images.intake import DECODERS
from shared.images.provenance import check_trust_file
from shared.jobs.metrics import watch_submissions

_MULTIPART_OVERHEAD = 64 * 1024
"""Room for boundaries and headers around an uploaded file."""
_CORS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
    "allow_headers": (
        *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match"),
        *("Last-Event-ID", "Prefer"),
        # The SDKs of OpenAI and MCP send these of their own accord.
        *("OpenAI-Organization", "OpenAI-Project"),
        *("Mcp-Method", "Mcp-Name", "Mcp-Protocol-Version", "Mcp-Session-Id"),
        *(
            f"X-Stainless-{name}"
            for name in (
                *("Arch", "Lang", "OS", "Package-Version", "Retry-Count"),
                *("Runtime", "Runtime-Version", "Timeout"),
            )
        ),
    ),
    "expose_headers": (
        *("ETag", "Idempotency-Replayed", "Location", "Preference-Applied", "RateLimit"),
        *("RateLimit-Policy", "Retry-After", "X-Request-Id"),
        *("Darkroom-Ignored", "X-Should-Retry"),
    ),
}
"""Keys travel in `Authorization`, never in cookies, so no site can use a visitor's."""
_STORAGE_THREADS = 32
_BLOCKING_CONNECTIONS = 256
_READINESS_PROBES = 8
"""Searches that wait for an embedding hold one each; all event streams and waits share one."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; it opens its connections when the server starts it."""
    try:
        chosen = settings or get_settings()
        find_filters(chosen.filters, "prompt")
        check_trust_file(chosen.provenance_trust_file)
        load_catalog(chosen.models_file)
    except (CatalogError, SettingsError) as error:
        sys.exit(f"darkroom api: {error}")  # without a traceback, which would hide it
    configure_logging(chosen)
    configure_tracing(chosen, "darkroom-api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_resources(chosen) as resources, resources.get(Following).running(resources):
            await require_live_key(resources)
            app.state.resources = resources
            # What was imported stays: a collection that looks through it stops every request.
            gc.collect()
            gc.freeze()
            with _metrics_listener(chosen):
                yield
        shut_down_tracing()

    app = FastAPI(
        title="Darkroom",
        version=darkroom_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        # `api.core.pages` serves these.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.document = DocumentBytes(app)
    upload_limit = chosen.max_upload_bytes + _MULTIPART_OVERHEAD
    batch_limit = MAX_BATCH_BYTES + _MULTIPART_OVERHEAD
    app.add_middleware(
        BodyLimits,
        default=chosen.max_body_bytes,
        by_path={
            "/v1/uploads": upload_limit,
            "/v1/loras": (chosen.max_lora_bytes if chosen.lora_uploads else 0)
            + _MULTIPART_OVERHEAD,
            "/v1/search": upload_limit,
            "/v1/images/inspect": upload_limit,
            "/v1/batches": batch_limit,
            "/v1/batches/files": batch_limit,
        },
        grace=chosen.request_grace.total_seconds(),
    )
    app.add_middleware(Openings)
    if chosen.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=chosen.cors_origins, **_CORS)
    app.add_middleware(RequestObserver)
    app.add_middleware(RequestEnvelope)
    app.add_middleware(HeadAsGet)
    app.add_middleware(InTurn)  # the last one added is the outermost
    for kind in HANDLED:
        app.add_exception_handler(kind, handle)
    for router in (
        # Routes are tried in turn, and these are asked for most.
        jobs,
        streams,
        # Before what it shares paths with.
        *([openai] if chosen.compat_openai else []),
        *([a1111] if chosen.compat_a1111 else []),
        *([huggingface] if chosen.compat_huggingface else []),
        *([mcp.router] if chosen.compat_mcp and mcp.is_installed() else []),
        pages,
        health,
        unlisted,
        images,
        image_files,
        receipts,
        uploads,
        loras,
        own_loras,
        models,
        fleet,
        webhooks,
        keys,
        batches,
        outputs,
        search,
        sessions,
        history,
        prompts,
        gallery,
        job_gallery,
    ):
        # Clients of others' APIs, and what makes EventSource work in old browsers, add parameters
        # of their own. Files that a ticket opens see to it themselves.
        not_strict = (openai, a1111, pages, health, unlisted, loras, models, streams, image_files)
        strict = router not in not_strict
        checks = [Depends(refuse_unknown_parameters)] if strict else None
        app.include_router(router, dependencies=checks)
    watch_routes(app.routes)
    install_openapi(app)
    return app


@contextmanager
def _metrics_listener(settings: Settings) -> Iterator[None]:
    """A port of its own for metrics that need no token; with one they are on the API's port."""
    if settings.metrics_token is not None:
        yield
        return
    listener = MetricsListener(settings)
    listener.start()
    try:
        yield
    finally:
        listener.close()


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open what the process needs; servers that are down are no reason not to start."""
    engine = open_async_engine(settings)
    # The circuit breaker gives it less time, and is not mistaken when this process is busy.
    quick = _redis(settings, socket_timeout=2, connections=AT_ONCE + _READINESS_PROBES)
    blocking = _redis(settings, socket_timeout=5, connections=_BLOCKING_CONNECTIONS)
    circuit_breaker = CircuitBreaker()
    semaphores = FairSemaphores(settings.database_pool_size, DECODERS)
    catalog = load_catalog(settings.models_file)
    watch_submissions(spec.name for spec in catalog.model)
    workers = LiveWorkers(quick, circuit_breaker, families_of(catalog))
    publisher = JobPublisher(celery_app(settings), circuit_breaker)
    storage = Storage(settings)
    storage_threads = ThreadPoolExecutor(_STORAGE_THREADS, "storage")
    decoder_threads = ThreadPoolExecutor(DECODERS, "decode")
    fetcher = ImageFetcher(settings)
    prompt_filters = PromptFilters(settings)
    of_slices = (
        fetcher,
        prompt_filters,
        LoadShedding(settings.max_queued_cost),
        QueryVectors(),
        TermStatisticsCache(),
        Estimates(quick, circuit_breaker, workers, settings.gpu_seconds_per_megapixel_step),
        QueueDepths(),
        Following(blocking, quick, circuit_breaker),
        SubmissionGroups(),
    )
    try:
        yield Resources(
            settings=settings,
            catalog=catalog,
            semaphores=semaphores,
            engine=engine,
            sessions=async_sessionmaker(engine, expire_on_commit=False),
            redis=quick,
            blocking_redis=blocking,
            circuit_breaker=circuit_breaker,
            publisher=publisher,
            workers=workers,
            storage=storage,
            storage_threads=storage_threads,
            decoder_threads=decoder_threads,
            keys=KeyCache(),
            rates=RequestRates(quick),
            streams=OpenAnswers(
                "too_many_streams", settings.max_streams_per_key, settings.max_streams
            ),
            waits=OpenAnswers("too_many_waits", settings.max_waits_per_key, settings.max_waits),
            of_slices={type(one): one for one in of_slices},
        )
    finally:
        publisher.close()
        fetcher.close()
        prompt_filters.close()
        decoder_threads.shutdown(wait=False, cancel_futures=True)
        storage_threads.shutdown(wait=False, cancel_futures=True)
        storage.close()
        await blocking.aclose()
        await quick.aclose()
        await engine.dispose()


def _redis(settings: Settings, socket_timeout: float, connections: int) -> Redis:
    """A client that never tries again by itself: callers know what a failure means for them."""
    return open_async_redis(
        settings,
        decode_responses=True,
        encoding_errors="replace",  # an entry that is no text is one that says nothing
        socket_timeout=socket_timeout,
        socket_connect_timeout=1,
        max_connections=connections,
        retry=Retry(NoBackoff(), 0),
    )
