"""Clients of Redis, wherever its address leads: to one server, or to Sentinels that name it."""

from typing import Any
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.maint_notifications import MaintNotificationsConfig
from redis.sentinel import Sentinel

from shared.core.settings import Settings

_SENTINEL_PORT = 26379


def open_redis(settings: Settings, **options: Any) -> "redis.Redis":
    """A blocking client; `options` are redis-py's."""
    client: redis.Redis = _open(settings, redis.Redis, Sentinel, options)
    return client


def open_async_redis(settings: Settings, **options: Any) -> redis.asyncio.Redis:
    """The same for the event loop."""
    # While it listens to Redis Enterprise's notices of maintenance, redis-py hands out connections
    # that were closed while idle: each costs the call that gets it.
    no_notices = MaintNotificationsConfig(enabled=False)
    options = {"maint_notifications_config": no_notices, **options}
    client: redis.asyncio.Redis = _open(settings, redis.asyncio.Redis, AsyncSentinel, options)
    pool: Any = client.connection_pool
    pool.connection_class = type("Connection", (_OnUvloop, pool.connection_class), {})
    return client


class _OnUvloop:
    """A connection that is gone says so as redis-py does: where its other end has closed it in this
    very moment, uvloop's RuntimeError comes out, which nobody takes for an outage."""

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Send.

        Raises:
            redis.ConnectionError: it is gone.
        """
        try:
            await super().send_packed_command(*args, **options)  # type: ignore[misc]
        except RuntimeError as error:
            raise redis.ConnectionError("the connection is closed") from error


def _open(settings: Settings, client: Any, sentinel: Any, options: dict[str, Any]) -> Any:
    """A `client` of the server, or one of the master that a `sentinel` names."""
    if (found := _sentinels(settings)) is None:
        return client.from_url(settings.redis_url.get_secret_value(), **options)
    hosts, of_sentinel, of_redis = found
    limits = {name: options[name] for name in ("socket_connect_timeout",) if name in options}
    watch = sentinel(hosts, sentinel_kwargs=of_sentinel | limits)
    return watch.master_for(settings.redis_sentinel_master, **of_redis, **options)


def broker(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Celery's broker URL, and what its transport must know besides."""
    url = settings.redis_url.get_secret_value()
    if (found := _sentinels(settings)) is None:
        return url, {}
    hosts, of_sentinel, of_redis = found
    userinfo = urlsplit(url).netloc.rpartition("@")[0]
    each = [f"sentinel://{userinfo}@{host}:{port}/{of_redis['db']}" for host, port in hosts]
    options = {
        "master_name": settings.redis_sentinel_master,
        "sentinel_kwargs": of_sentinel | {"socket_timeout": 2, "socket_connect_timeout": 2},
    }
    return ";".join(each), options


def _sentinels(
    settings: Settings,
) -> tuple[list[tuple[str, int]], dict[str, Any], dict[str, Any]] | None:
    """The Sentinels' addresses, their options and those of Redis; None if the URL names Redis."""
    parts = urlsplit(settings.redis_url.get_secret_value())
    if parts.scheme != "sentinel":
        return None
    hosts = []
    for address in parts.netloc.rpartition("@")[2].split(","):
        host, _, port = address.partition(":")
        hosts.append((host, int(port or _SENTINEL_PORT)))
    of_redis: dict[str, Any] = {"db": int(parts.path.strip("/") or 0)}
    if parts.password:
        of_redis["password"] = unquote(parts.password)
    if parts.username:
        of_redis["username"] = unquote(parts.username)
    own = settings.redis_sentinel_password
    return hosts, {"password": own.get_secret_value()} if own else {}, of_redis
