"""The API process: `uvicorn api.app:create_app --factory`."""

import gc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import async_sessionmaker
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from api.admin.keys import require_live_key
from api.admin.routes import keys_router as keys
from api.admin.routes import models_router as models
from api.admin.routes import queues_router as queues
from api.admin.routes import usage_router as usage
from api.admin.routes import workers_router as workers
from api.admin.service import QueueDepths
from api.batches.outputs import router as outputs
from api.batches.reading import MAX_BYTES as MAX_BATCH_BYTES
from api.batches.routes import router as batches
from api.context import Resources
from api.core.errors import (
    Problem,
    handle_http_exception,
    handle_problem,
    handle_storage_unavailable,
    handle_validation_error,
)
from api.core.fairness import Gates
from api.core.health import metrics_router as metrics
from api.core.health import router as health
from api.core.limits import BodyLimits
from api.core.middleware import HeadAsGet, RequestEnvelope, RequestObserver
from api.core.openapi import VERSION, install_openapi
from api.core.pages import DocumentBytes
from api.core.pages import router as pages
from api.core.principal import KeyCache
from api.core.publisher import Circuit, JobPublisher
from api.core.quotas import Pressure
from api.core.serialization import refuse_unknown_parameters
from api.core.streams import OpenAnswers, Openings
from api.core.worker_roster import WorkerRoster
from api.images.routes import deletion_router as gallery
from api.images.routes import router as images
from api.images.routes import uploads_router as uploads
from api.images.session_routes import router as sessions
from api.jobs.estimates import Estimates
from api.jobs.following import Following
from api.jobs.init_images import ImageFetcher
from api.jobs.routes import router as jobs
from api.jobs.stream_routes import router as streams
from api.search.embedding import QueryVectors
from api.search.routes import recommendations_router as prompts
from api.search.routes import router as search
from api.search.service import Censuses
from api.webhooks.routes import router as webhooks
from shared.core.broker import celery_app
from shared.core.database import open_async_engine
from shared.core.errors import StorageUnavailable
from shared.core.logging import configure_logging
from shared.core.metrics import MetricsListener
from shared.core.model_catalog import load_catalog
from shared.core.quotas import RequestRates
from shared.core.settings import Settings, get_settings
from shared.core.storage import Storage
from shared.core.telemetry import configure_tracing, shut_down_tracing
from shared.images.intake import DECODERS

_MULTIPART_OVERHEAD = 64 * 1024
"""Room for boundaries and headers around an uploaded file."""
_CORS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
    "allow_headers": (
        *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match"),
        *("Last-Event-ID", "Prefer"),
    ),
    "expose_headers": (
        *("ETag", "Idempotency-Replayed", "Location", "Preference-Applied", "RateLimit"),
        *("RateLimit-Policy", "Retry-After", "X-Request-Id"),
    ),
}
"""Keys travel in `Authorization`, never in cookies, so no site can use a visitor's."""
_STORAGE_THREADS = 32
_BLOCKING_CONNECTIONS = 256
"""Searches that wait for an embedding hold one each; all event streams and waits share one."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; it opens its connections when the server starts it."""
    chosen = settings or get_settings()
    configure_logging(chosen)
    configure_tracing(chosen, "darkroom-api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_resources(chosen) as resources, resources.following.running(resources):
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
        version=VERSION,
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
    app.add_middleware(HeadAsGet)  # the last one added is the outermost
    app.add_exception_handler(Problem, handle_problem)
    app.add_exception_handler(StorageUnavailable, handle_storage_unavailable)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    for router in (
        pages,
        health,
        metrics,
        jobs,
        streams,
        images,
        uploads,
        models,
        workers,
        queues,
        webhooks,
        keys,
        usage,
        batches,
        outputs,
        search,
        sessions,
        prompts,
        gallery,
    ):
        # What makes EventSource work in old browsers adds parameters of its own to streams.
        strict = router not in (pages, health, metrics, models, streams)
        checks = [Depends(refuse_unknown_parameters)] if strict else None
        app.include_router(router, dependencies=checks)
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
    quick = _redis(settings, socket_timeout=0.2, connections=32)
    blocking = _redis(settings, socket_timeout=5, connections=_BLOCKING_CONNECTIONS)
    circuit = Circuit()
    gates = Gates(settings.database_pool_size, DECODERS)
    roster = WorkerRoster(quick, circuit)
    publisher = JobPublisher(celery_app(settings), circuit)
    storage = Storage(settings)
    storage_threads = ThreadPoolExecutor(_STORAGE_THREADS, "storage")
    decoder_threads = ThreadPoolExecutor(DECODERS, "decode")
    fetcher = ImageFetcher(settings)
    try:
        yield Resources(
            settings=settings,
            catalog=load_catalog(settings.models_file),
            gates=gates,
            sessions=async_sessionmaker(engine, expire_on_commit=False),
            redis=quick,
            blocking_redis=blocking,
            circuit=circuit,
            publisher=publisher,
            roster=roster,
            storage=storage,
            storage_threads=storage_threads,
            decoder_threads=decoder_threads,
            fetcher=fetcher,
            keys=KeyCache(),
            rates=RequestRates(quick, settings.redis_url.get_secret_value()),
            pressure=Pressure(settings.max_queued_cost),
            vectors=QueryVectors(),
            censuses=Censuses(),
            estimates=Estimates(quick, circuit, roster, settings.gpu_seconds_per_megapixel_step),
            queues=QueueDepths(),
            following=Following(blocking, quick, circuit),
            streams=OpenAnswers(
                "too_many_streams", settings.max_streams_per_key, settings.max_streams
            ),
            waits=OpenAnswers("too_many_waits", settings.max_waits_per_key, settings.max_waits),
        )
    finally:
        publisher.close()
        fetcher.close()
        decoder_threads.shutdown(wait=False, cancel_futures=True)
        storage_threads.shutdown(wait=False, cancel_futures=True)
        storage.close()
        await blocking.aclose()
        await quick.aclose()
        await engine.dispose()


def _redis(settings: Settings, socket_timeout: float, connections: int) -> Redis:
    """A client that never tries again by itself: callers know what a failure means for them."""
    return Redis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        encoding_errors="replace",  # an entry that is no text is one that says nothing
        socket_timeout=socket_timeout,
        socket_connect_timeout=0.2,
        max_connections=connections,
        retry=Retry(NoBackoff(), 0),
    )
