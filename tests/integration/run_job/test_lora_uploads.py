"""LoRAs that tenants upload: what is taken, who may use it, and what is refused."""

import gzip
import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from darkroom import Client
from shared.core.storage import Storage
from tests.conftest import MODELS, MakeKey
from tests.integration.run_job.test_loras import finished, submit
from tests.processes import ApiProcess, WorkerProcess, free_port
from worker.models.loras import LoraFiles

FILE = (MODELS.parent / "loras" / "grain.safetensors").read_bytes()
SHA256 = hashlib.sha256(FILE).hexdigest()


@pytest.fixture(scope="module")
def open_api(
    environment: dict[str, str], make_key: MakeKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiProcess]:
    """An API whose operator lets LoRAs in, of a megabyte at most."""
    key = make_key("uploaders")
    log = tmp_path_factory.mktemp("api") / "loras.log"
    changes = {"DARKROOM_LORA_UPLOADS": "true", "DARKROOM_MAX_LORA_BYTES": "1000000"}
    changes |= {"DARKROOM_LORA_UPLOAD_TOTAL_BYTES": "20000"}
    with ApiProcess({**environment, **changes}, free_port(), key, log) as process:
        yield process


def send(
    http: httpx2.Client, content: bytes = FILE, name: str = "mine", family: str = "sd", **more: str
) -> httpx2.Response:
    fields = {"name": name, "family": family, **more}
    return http.post("/v1/loras", data=fields, files={"file": ("a.safetensors", content)})


def file_of(tensors: dict[str, Any], data: bytes = b"") -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + data


def matrix(rows: int, columns: int, name: str = "unet.a.attn2.to_k.lora_A.weight") -> bytes:
    size = rows * columns * 4
    info = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, size]}
    return file_of({name: info}, bytes(size))


def test_an_uploaded_lora_runs_for_its_tenant_alone(
    open_api: ApiProcess,
    make_key: MakeKey,
    demo_worker: WorkerProcess,
    cpu_worker: WorkerProcess,
    generate_worker: WorkerProcess,
) -> None:
    answer = send(open_api.http, trigger_words="film grain, grainy")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["sha256"], made["bytes"]) == (SHA256, len(FILE))
    assert made["trigger_words"] == ["film grain", "grainy"]
    mine = [lora for lora in open_api.http.get("/v1/loras").json()["data"] if lora["uploaded"]]
    assert [lora["name"] for lora in mine] == ["mine"]
    asked = {"model": "demo", "steps": 3, "width": 64, "height": 64}
    job = finished(open_api, submit(open_api, **asked, loras=[{"name": "mine"}]), 120)
    assert job["state"] == "succeeded", job["error"]
    assert job["loras"] == [{"name": "mine", "scale": 1.0}]
    same = finished(open_api, submit(open_api, **asked, loras=[{"name": "grain"}]), 120)
    pixels = [open_api.http.get(f"/v1/images/{j['images'][0]['id']}/receipt") for j in (job, same)]
    receipt = pixels[0].json()
    assert receipt["loras"] == [{"name": "mine", "scale": 1.0, "sha256": SHA256}]
    again = open_api.http.post(
        f"/v1/images/{job['images'][0]['id']}/reproduce", headers={"Prefer": "wait=60"}
    ).json()
    assert finished(open_api, again["job"], 120)["state"] == "succeeded"
    with open_api.client(make_key("strangers")) as stranger:
        body = {"prompt": "x", "model": "demo", "loras": [{"name": "mine"}]}
        assert "unknown_lora" in stranger.post("/v1/jobs", json=body).text
        assert stranger.delete("/v1/loras/mine").status_code == 404
        assert not any(lora["uploaded"] for lora in stranger.get("/v1/loras").json()["data"])
    held = submit(open_api, model="held", loras=[{"name": "mine"}])
    refused = open_api.http.delete("/v1/loras/mine")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_finished")
    open_api.http.post(f"/v1/jobs/{held['id']}/cancel")
    assert open_api.http.delete("/v1/loras/mine").status_code == 204
    assert open_api.http.delete("/v1/loras/mine").status_code == 404
    late = open_api.http.post(f"/v1/images/{job['images'][0]['id']}/reproduce")
    assert late.json()["code"] == "not_reproducible"


@pytest.mark.parametrize(
    ("content", "family", "code"),
    [
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}q\x00.", "sd", "not_safetensors"),
        (gzip.compress(bytes(10_000_000)), "sd", "not_safetensors"),
        (b"PK\x03\x04" + bytes(100), "sd", "not_safetensors"),
        (b"", "sd", "not_safetensors"),
        (FILE[:-10], "sd", "not_safetensors"),
        (FILE + b"x", "sd", "not_safetensors"),
        (struct.pack("<Q", 2**62) + b"{}", "sd", "not_safetensors"),
        (file_of({"a.lora_A.weight": {"dtype": "F32", "shape": [2**40, 2**40],
                                      "data_offsets": [0, 4]}}, bytes(4)), "sd", "not_safetensors"),
        (file_of({"a": [[[[0]]]]}), "sd", "not_safetensors"),
        (matrix(4, 4, "unet.conv_in.weight"), "sd", "not_a_lora"),
        (matrix(4, 4, "unet.a.lora_magnitude_vector"), "sd", "not_supported"),
        (matrix(600, 4), "sd", "rank_too_high"),
        (matrix(4, 2048), "sd", "wrong_family"),
        (matrix(4, 768), "sdxl", "wrong_family"),
        (FILE, "flux", "wrong_family"),
    ],
)  # fmt: skip
def test_what_is_no_lora_for_the_family_is_refused(
    open_api: ApiProcess, content: bytes, family: str, code: str
) -> None:
    answer = send(open_api.http, content, "bad", family)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["code"] == "lora_refused", problem
    assert [error["code"] for error in problem["errors"]] == [code], problem


def test_names_are_taken_once_and_the_catalogue_wins(open_api: ApiProcess) -> None:
    assert send(open_api.http, name="grain").json()["code"] == "lora_exists"
    assert send(open_api.http, name="twice").status_code == 201
    assert send(open_api.http, name="twice").json()["code"] == "lora_exists"
    assert open_api.http.delete("/v1/loras/twice").status_code == 204
    for name, family in (("../etc", "sd"), ("", "sd"), ("ok", "sd9")):
        assert send(open_api.http, name=name, family=family).json()["code"] == "validation_failed"


def test_limits_of_bytes(open_api: ApiProcess) -> None:
    assert send(open_api.http, bytes(3_000_000)).status_code == 413
    for number in range(6):
        assert send(open_api.http, name=f"n{number}").status_code == 201
    assert send(open_api.http, name="n6").json()["code"] == "upload_bytes_exceeded"
    for number in range(6):
        open_api.http.delete(f"/v1/loras/n{number}")


def test_it_takes_the_scope_and_the_operators_word(
    open_api: ApiProcess, api: ApiProcess, make_key: MakeKey
) -> None:
    assert send(api.http).json()["code"] == "lora_uploads_disabled"
    with open_api.client(make_key("uploaders", ("jobs",))) as http:
        assert send(http).json()["code"] == "insufficient_scope"
        assert http.get("/v1/loras").status_code == 200


def test_the_client_uploads_and_deletes(
    open_api: ApiProcess, make_key: MakeKey, tmp_path: Path
) -> None:
    path = tmp_path / "grain.safetensors"
    path.write_bytes(FILE)
    with Client(open_api.url, make_key("uploaders")) as client:
        made = client.loras.create(path, name="sent", family="sd", trigger_words=["grain"])
        assert (made.sha256, made.trigger_words) == (SHA256, ("grain",))
        assert "sent" in {lora.name for lora in client.loras.list() if lora.uploaded}
        client.loras.delete("sent")


def test_a_small_disk_keeps_the_newest(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's /tmp is smaller than what a worker may keep elsewhere."""
    usage = shutil.disk_usage("/")._replace(total=5000)
    monkeypatch.setattr("worker.models.loras.shutil.disk_usage", lambda _: usage)
    files = LoraFiles((), storage)
    paths = []
    for number in range(3):
        body = bytes([number]) * 1000
        key = f"_loras/small-disk-{number}"
        storage.put(key, body, "application/octet-stream")
        digest = hashlib.sha256(body).hexdigest()
        [lora] = files.of([{"name": "a", "scale": 1, "s3_key": key, "sha256": digest}])
        paths.append(lora.path)
    assert [path.exists() for path in paths] == [False, True, True]
