"""A container's health check: `python -m deploy.docker.healthy http://… | tcp://… | file:///…`.

The images contain neither curl nor shell tools that could do it. An address with `http` must
answer 200; one with `tcp` must accept a connection, which is how a worker shows that it lives: its
`/metrics` may ask for a token, and a probe carries none. A file with `?every=P1D` must have been
written within the last two such periods: so backups show that they are made.
"""

import os
import socket
import sys
import time
import urllib.request
from urllib.parse import parse_qs, urlsplit

_SECONDS = 3.0


def is_healthy(address: str) -> bool:
    """Whether it answers within three seconds."""
    parts = urlsplit(address)
    try:
        if parts.scheme == "file":
            every = _seconds(parse_qs(parts.query)["every"][0])
            return time.time() - os.stat(parts.path).st_mtime < 2 * every
        if parts.scheme == "tcp":
            socket.create_connection((parts.hostname or "", parts.port or 0), _SECONDS).close()
            return True
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(address, timeout=_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _seconds(duration: str) -> float:
    # Imported here: the checks that run every few seconds need none of it.
    from datetime import timedelta

    from pydantic import TypeAdapter

    return TypeAdapter(timedelta).validate_python(duration).total_seconds()


if __name__ == "__main__":
    sys.exit(0 if is_healthy(sys.argv[1]) else 1)
