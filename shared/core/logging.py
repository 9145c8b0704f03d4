"""Structured logs: one line an event, secrets masked, ids bound as context."""

import logging
import sys
import threading
from types import TracebackType
from typing import Any

import structlog

from shared.core import telemetry
from shared.core.keys import redact
from shared.core.settings import Settings

_NOISY = (
    *("httpx", "httpx2", "httpcore", "httpcore2", "botocore", "urllib3", "uvicorn.access"),
    *("celery", "kombu", "sentence_transformers", "diffusers", "transformers"),
)

_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access")
"""What uvicorn has set up for itself before it asks for the application."""


def configure_logging(settings: Settings) -> None:
    """Send this process's logs, and those of its libraries, to stderr in one format."""
    shared_processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _mask_secrets,
    ]
    structlog.configure(
        processors=[*shared_processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared_processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # Each request and each S3 call as a line of its own would drown the events.
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for own_handlers in _OWN_HANDLERS:
        logger = logging.getLogger(own_handlers)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)
    # The interpreter would print a trace of many lines, which no collector takes for one event.
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda died: _log_uncaught(
        died.exc_type, died.exc_value, died.exc_traceback
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose keyword arguments become fields of the event."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    about = (kind, error or kind(), trace)
    get_logger("uncaught").critical(
        "uncaught", thread=threading.current_thread().name, exc_info=about
    )


def _add_trace(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    ids = telemetry.trace_ids()
    if ids is not None:
        event["trace_id"], event["span_id"] = ids
    return event


def _mask_secrets(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {
        field: redact(value) if isinstance(value, str) else value for field, value in event.items()
    }
