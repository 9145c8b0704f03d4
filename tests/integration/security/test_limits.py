"""What a hostile request may cost the API: bytes, time, memory; never an answer of 5xx."""

import errno
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from deploy.tenants import create_key
from shared.core.settings import Settings
from tests.fuzz.load import throw_images
from tests.processes import QUICK, ApiProcess, free_port
from tests.unit.images import hostile

GRACE = 4.0
"""Less patience than a client of these tests needs would be refused to it, too."""
LIMIT = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def flooded(
    settings: Settings, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiProcess]:
    """An API with little patience, that no other test has warmed."""
    url = settings.database_url.get_secret_value()
    key = create_key(url, tenant="besieged", name="besieged", scopes=["jobs", "images"])
    log = tmp_path_factory.mktemp("besieged") / "api.log"
    own = {**environment, "DARKROOM_REQUEST_GRACE": f"PT{GRACE:.0f}S"}
    process = ApiProcess(own, free_port(), key, log)
    process.imports = ""  # what it takes is measured: it shares no memory with a fork server
    with process:
        yield process


@pytest.fixture(scope="module")
def hasty(
    settings: Settings, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiProcess]:
    """An API with less patience than large requests need."""
    url = settings.database_url.get_secret_value()
    key = create_key(url, tenant="besieged", name="hasty", scopes=["jobs"])
    log = tmp_path_factory.mktemp("hasty") / "api.log"
    own = {**environment, "DARKROOM_REQUEST_GRACE": "PT0.5S"}
    with ApiProcess(own, free_port(), key, log, factory=QUICK) as process:
        yield process


def dial(api: ApiProcess) -> socket.socket:
    port = int(api.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the server closes; a reset ends it, too."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def head(api: ApiProcess, path: str, length: int | None, key: str | None = None) -> bytes:
    framing = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
    lines = [
        f"POST {path} HTTP/1.1", "Host: test", "Content-Type: application/json", framing,
        f"Authorization: Bearer {key or api.key}",
    ]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.long
@pytest.mark.parametrize(
    "beginning", [b"", b"GET /healthz HTTP/1.1\r\nHost: test\r\nX-Slow: "], ids=["nothing", "half"]
)
def test_a_header_that_does_not_end_is_cut(flooded: ApiProcess, beginning: bytes) -> None:
    with dial(flooded) as connection:
        connection.sendall(beginning)
        assert read_to_end(connection) == b""


def test_a_second_header_that_does_not_end_is_cut(hasty: ApiProcess) -> None:
    with dial(hasty) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\nGET /healthz HTTP/1.1\r\nX")
        assert read_to_end(connection).count(b"HTTP/1.1 200") == 1


def test_a_header_without_bounds_is_cut(flooded: ApiProcess) -> None:
    def pour(connection: socket.socket) -> None:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Long: ")
        for _ in range(1000):
            connection.sendall(b"a" * 65536)

    with (
        dial(flooded) as connection,
        pytest.raises((BrokenPipeError, ConnectionResetError)) as cut,
    ):
        pour(connection)
    assert cut.value.errno in (errno.EPIPE, errno.ECONNRESET), "65 MB of header were taken"


@pytest.mark.long
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/keys", "/v1/uploads"])
def test_a_drip_of_a_body_is_cut(flooded: ApiProcess, path: str) -> None:
    request = head(flooded, path, 1000)
    if path == "/v1/uploads":
        request = request.replace(b"application/json", b"multipart/form-data; boundary=x")
        request += b'--x\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    with dial(flooded) as connection:
        connection.sendall(request)
        over = threading.Event()

        def drip() -> None:
            while not over.wait(0.1):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        answer = read_to_end(connection)
        over.set()
        dripping.join()
    expected = b" 403 " if path == "/v1/keys" else b" 408 "
    assert expected in answer.partition(b"\r\n")[0] + b" "


def test_a_stranger_s_body_is_not_read(hasty: ApiProcess) -> None:
    with dial(hasty) as connection:
        connection.sendall(head(hasty, "/v1/jobs", 10**6, key="drk_nobody"))
        assert b" 401 " in read_to_end(connection).partition(b"\r\n")[0]


@pytest.mark.parametrize("length", [LIMIT + 1, None], ids=["declared", "chunked"])
def test_a_body_beyond_the_limit_is_refused_before_it_is_parsed(
    flooded: ApiProcess, length: int | None
) -> None:
    with dial(flooded) as connection:
        connection.sendall(head(flooded, "/v1/jobs", length))
        if length is None:
            chunk = b"10000\r\n" + b"[" * 65536 + b"\r\n"
            try:
                for _ in range(LIMIT // 65536 + 2):
                    connection.sendall(chunk)
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert b" 413 " in connection.recv(65536).partition(b"\r\n")[0]


def test_a_body_of_just_the_limit_is_read(flooded: ApiProcess) -> None:
    body = b'{"prompt": "a red circle"}'.ljust(LIMIT)
    headers = {"Content-Type": "application/json"}
    statuses = [
        flooded.http.post("/v1/jobs", content=content, headers=headers).status_code
        for content in (body, body + b" ")
    ]
    assert statuses == [202, 413]


@pytest.mark.parametrize("every", [15, pytest.param(6, marks=pytest.mark.long)])
def test_hostile_images_cost_little_memory_and_no_failure(flooded: ApiProcess, every: int) -> None:
    """Some of them; `make fuzz` throws all 300."""
    toll = throw_images(flooded, hostile.all_cases()[::every])
    assert toll.wrong == set()
    assert toll.grown_mb is None or toll.grown_mb < 170
    assert "Traceback" not in flooded.log.read_text()


def test_it_still_answers(flooded: ApiProcess) -> None:
    started = time.monotonic()
    assert flooded.http.get("/readyz").status_code == 200
    assert time.monotonic() - started < 30
