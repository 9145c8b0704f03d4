"""Connections to Postgres: one driver, the same statements, async in the API, sync in workers."""

from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from shared.settings import Settings

_CONNECT_ARGS = {
    "connect_timeout": 2,
    "application_name": "darkroom",
    # A half-open connection is noticed within seconds instead of the kernel's two hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    # A statement in this system takes milliseconds; one that takes 30 s is a fault.
    "options": "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000",
}


def open_engine(settings: Settings, pool_size: int | None = None) -> Engine:
    """A pooled synchronous engine, for workers and commands."""
    return create_engine(
        settings.database_url.get_secret_value(),
        pool_size=pool_size or settings.database_pool_size,
        max_overflow=0,
        pool_timeout=30,
        pool_pre_ping=True,
        connect_args=_CONNECT_ARGS,
    )


def open_async_engine(settings: Settings) -> AsyncEngine:
    """A pooled asynchronous engine, for the API."""
    return create_async_engine(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=settings.database_timeout.total_seconds(),
        pool_pre_ping=False,
        connect_args=_CONNECT_ARGS,
    )


def session_factory(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose objects stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)
