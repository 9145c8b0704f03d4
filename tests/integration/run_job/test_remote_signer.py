"""Workers whose images a remote signer signs, or that cannot sign."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.local.certificate import make_certificate
from tests.integration.run_job.test_signing import MODEL, content, submit, verify, with_key
from tests.processes import ApiProcess, WorkerProcess, slowness, wait_until
from tests.receiver import Receiver, Request


@pytest.fixture
def signing(tmp_path: Path) -> dict[str, str]:
    return with_key(tmp_path)


class Signer:
    """What a signing service does with a request, after a number of failures."""

    def __init__(self, key: Path) -> None:
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded
        self.failures: list[str] = []
        self.tokens: set[str | None] = set()

    def __call__(self, request: Request) -> None:
        received = request.received
        self.tokens.add(received.headers.get("authorization"))
        data = received.body
        match self.failures.pop(0) if self.failures else None:
            case "refuse":
                request.reply(503)
            case "drip":  # longer than any deadline
                request.send_response(200)
                request.send_header("content-length", "64")
                request.end_headers()
                wait_until(lambda: not request.connection.recv(1), 60, "the end of it")
            case "flood":
                request.reply(200, body=b"x" * 1_000_000)
            case "forge":
                request.reply(200, body=self._key.sign(b"else", ec.ECDSA(hashes.SHA256())))
            case _:
                request.reply(200, body=self._key.sign(data, ec.ECDSA(hashes.SHA256())))


@pytest.fixture
def remote(signing: dict[str, str]) -> Iterator[tuple[Receiver, Signer]]:
    service = Signer(Path(signing["DARKROOM_PROVENANCE_KEY_FILE"]))
    with Receiver(service) as receiver:
        yield receiver, service


@pytest.mark.long
def test_an_image_outlasts_a_remote_signer_that_fails(
    api: ApiProcess,
    environment: dict[str, str],
    signing: dict[str, str],
    remote: tuple[Receiver, Signer],
    tmp_path: Path,
) -> None:
    receiver, service = remote
    own = {name: at for name, at in signing.items() if not name.endswith("KEY_FILE")} | {
        "DARKROOM_PROVENANCE_SIGNER_URL": receiver.url,
        "DARKROOM_PROVENANCE_SIGNER_TOKEN": "a-token",
        "DARKROOM_PROVENANCE_SIGNER_TIMEOUT": "PT5S",  # which a whole answer never takes
    }
    service.failures = ["refuse"]  # at the start, which must not stop the worker
    log = tmp_path / "log"
    with WorkerProcess({**environment, **own}, ["generate", "--model", MODEL], log):
        service.failures = ["refuse", "drip", "flood", "forge"]
        before = len(receiver.received)
        job = submit(api.http, seed=78)
        assert job["state"] == "succeeded", job
        assert [attempt["outcome"] for attempt in job["attempts"]] == ["succeeded"]
        state, wrong, _ = verify(content(api.http, job["images"][0]), "image/png")
        assert (state, wrong) == ("Valid", ["signingCredential.untrusted"])
        assert len(receiver.received) - before == 5
        assert service.tokens == {"Bearer a-token"}
        # A job whose image waits for the signer can be canceled.
        service.failures = ["refuse"] * 10_000
        before = len(receiver.received)
        waiting = submit(api.http, wait=0, seed=79)
        receiver.wait(before + 1)
        api.http.post(f"/v1/jobs/{waiting['id']}/cancel")
        path = f"/v1/jobs/{waiting['id']}"
        wait_until(lambda: api.http.get(path).json()["state"] == "canceled", what="the end")
    assert "signer_unavailable" in log.read_text()
    assert "a-token" not in log.read_text()


@pytest.mark.long
def test_what_cannot_sign_is_said_at_the_start(
    environment: dict[str, str], signing: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "nonsense.pem").write_text("nonsense")
    other, _ = make_certificate()
    (tmp_path / "other.pem").write_text(other)
    cases = {
        "DARKROOM_PROVENANCE_CERTIFICATE_FILE does not hold PEM certificates": {
            "DARKROOM_PROVENANCE_CERTIFICATE_FILE": str(tmp_path / "nonsense.pem")
        },
        "gone.pem cannot be read: No such file or directory": {
            "DARKROOM_PROVENANCE_KEY_FILE": str(tmp_path / "gone.pem")
        },
        "DARKROOM_PROVENANCE_KEY_FILE: it is not the key of the certificate": {
            "DARKROOM_PROVENANCE_KEY_FILE": str(tmp_path / "other.pem")
        },
    }
    for message, wrong in cases.items():
        worker = WorkerProcess(
            environment | signing | wrong, ["generate", "--model", MODEL], tmp_path / "log"
        )
        worker.start()
        assert worker.child.wait(60 * slowness()) == 78
        assert message in worker.log.read_text()
