"""Images with a C2PA manifest, from a real worker with a key of its own."""

import base64
import hashlib
import io
import os
import random
import socket
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import c2pa
import httpx2
import pytest
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.certificate import ORGANIZATION, make_certificate
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.images.models import Image
from shared.images.provenance import SOURCE_TYPE
from tests import fork_server
from tests.conftest import MODELS
from tests.images import encode
from tests.integration.run_job import test_one_job
from tests.integration.run_job.test_one_job import finished
from tests.processes import PROJECT, ApiProcess, WorkerProcess, free_port

MODEL = "held"
UNSIGNED = "unsigned"
tenant = test_one_job.tenant


def with_key(folder: Path) -> dict[str, str]:
    """What makes a worker sign, with a certificate as `make run` makes it."""
    key, certificate = make_certificate()
    (folder / "key.pem").write_text(key)
    (folder / "certificate.pem").write_text(certificate)
    return {
        "DARKROOM_PROVENANCE": "signed",
        "DARKROOM_PROVENANCE_KEY_FILE": str(folder / "key.pem"),
        "DARKROOM_PROVENANCE_CERTIFICATE_FILE": str(folder / "certificate.pem"),
    }


@pytest.fixture(scope="module")
def signer(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """It serves `held`, and a model that is left out."""
    folder = tmp_path_factory.mktemp("signer")
    catalogue = MODELS.read_text("utf-8").replace('"../', f'"{PROJECT}/')
    _, _, after = catalogue.partition(f'name = "{MODEL}"')
    same = after.partition("[[model]]")[0]
    unsigned = f'\n[[model]]\nname = "{UNSIGNED}"\nprovenance = "off"{same}'
    (folder / "models.toml").write_text(catalogue + unsigned, "utf-8")
    own = environment | with_key(folder) | {"DARKROOM_MODELS_FILE": str(folder / "models.toml")}
    arguments = ["generate", "--model", MODEL, "--model", UNSIGNED]
    with WorkerProcess(own, arguments, folder / "log") as worker:
        yield worker


def submit(http: httpx2.Client, wait: int = 60, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "a signed circle", "model": MODEL, "seed": 5, **fields}
    job: dict[str, Any] = http.post(
        "/v1/jobs", json=body, headers={"Prefer": f"wait={wait}"}
    ).json()
    return job


def make(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    """The only image of a finished job."""
    job = submit(http, **fields)
    assert job["state"] == "succeeded", job
    image: dict[str, Any] = job["images"][0]
    return image


def content(http: httpx2.Client, image: Mapping[str, Any]) -> bytes:
    return http.get(f"/v1/images/{image['id']}/content?proxy=1").content


def verify(body: bytes, content_type: str) -> tuple[str, list[str], dict[str, Any]]:
    """The state, what is wrong, and the manifest, as c2pa's own reader has them."""
    settings = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    reader = c2pa.Reader(content_type, io.BytesIO(body), context=c2pa.Context.from_dict(settings))
    failures = reader.get_validation_results()["activeManifest"]["failure"]
    manifest: dict[str, Any] = reader.get_active_manifest()
    return reader.get_validation_state(), [one["code"] for one in failures], manifest


def assertion(manifest: dict[str, Any], label: str) -> Any:
    [found] = [one["data"] for one in manifest["assertions"] if one["label"] == label]
    return found


@pytest.mark.parametrize(
    "output",
    [
        "png",
        "jpeg",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("webp", "webp at 80")),
    ],
)
def test_the_manifest_is_true_of_the_file_and_says_how_it_was_made(
    api: ApiProcess, signer: WorkerProcess, output: str
) -> None:
    name, _, quality = output.partition(" at ")
    extra = {"output_quality": int(quality)} if quality else {}
    image = make(api.http, output_format=name, **extra)
    body = content(api.http, image)
    # Valid, and untrusted: nobody knows the development certificate.
    state, wrong, manifest = verify(body, image["content_type"])
    assert (state, wrong) == ("Valid", ["signingCredential.untrusted"])
    assert manifest["claim_generator_info"][0]["name"] == "Darkroom"
    [action] = assertion(manifest, "c2pa.actions.v2")["actions"]
    assert action == {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}
    receipt = api.http.get(f"/v1/images/{image['id']}/receipt").json()
    assert assertion(manifest, "darkroom.receipt") == receipt
    assert receipt["provenance"] == "signed"
    assert (image["bytes"], image["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    with Pillow.open(io.BytesIO(body)) as opened:
        pixels = opened.convert("RGB").tobytes()
        assert SOURCE_TYPE.encode() in opened.info["xmp"]
    assert image["pixel_sha256"] == hashlib.sha256(pixels).hexdigest()


def test_a_changed_pixel_breaks_the_manifest(api: ApiProcess, signer: WorkerProcess) -> None:
    body = bytearray(content(api.http, make(api.http)))
    body[body.rindex(b"IDAT") + 8] ^= 1
    state, wrong, _ = verify(bytes(body), "image/png")
    assert state == "Invalid"
    assert "assertion.dataHash.mismatch" in wrong


def test_images_that_it_was_made_from_are_ingredients_by_hash(
    api: ApiProcess, signer: WorkerProcess
) -> None:
    start = make(api.http)
    references = [{"image": start["id"], "scale": 0.5}]
    image = make(api.http, init_image=start["id"], strength=0.6, references=references)
    state, wrong, manifest = verify(content(api.http, image), "image/png")
    assert (state, wrong) == ("Valid", ["signingCredential.untrusted"])
    uri = f"nih:sha-256;{start['sha256']}"
    assert [(one["relationship"], one["instance_id"]) for one in manifest["ingredients"]] == [
        *(("parentOf", uri), ("inputTo", uri)),
    ]
    actions = assertion(manifest, "c2pa.actions.v2")["actions"]
    assert [one["action"] for one in actions] == ["c2pa.opened", "c2pa.edited"]
    assert actions[1]["digitalSourceType"] == SOURCE_TYPE


def test_it_is_made_again_pixel_for_pixel_in_another_file(
    api: ApiProcess, signer: WorkerProcess
) -> None:
    image = make(api.http)
    again = api.http.post(
        f"/v1/images/{image['id']}/reproduce", headers={"Prefer": "wait=60"}
    ).json()
    assert (again["verdict"], again["max_pixel_difference"]) == ("identical", 0), again
    assert again["image"]["pixel_sha256"] == image["pixel_sha256"]
    assert again["image"]["sha256"] != image["sha256"]
    assert again["reason"].endswith("The files differ: each is signed again, at its own time.")


def test_every_door_serves_the_signed_bytes(api: ApiProcess, signer: WorkerProcess) -> None:
    openai = api.http.post("/openai/v1/images/generations", json={"prompt": "x", "model": MODEL})
    web_ui = {"prompt": "x", "override_settings": {"sd_model_checkpoint": MODEL}, "steps": 4}
    a1111 = api.http.post("/sdapi/v1/txt2img", json={**web_ui, "width": 64, "height": 64})
    hugging_face = api.http.post("/hf", json={"inputs": "x", "parameters": {"model": MODEL}})
    files = [
        base64.b64decode(openai.json()["data"][0]["b64_json"]),
        base64.b64decode(a1111.json()["images"][0]),
        hugging_face.content,
    ]
    for body in files:
        assert verify(body, "image/png")[0] == "Valid"
    listed = api.http.get("/v1/jobs", params={"limit": 20}).json()["data"]
    known = {image["sha256"] for job in listed for image in job["images"]}
    assert {hashlib.sha256(body).hexdigest() for body in files} <= known


def test_a_model_can_be_left_out(
    database: sessionmaker[Session],
    settings: Settings,
    storage: Storage,
    tenant: UUID,
    signer: WorkerProcess,
) -> None:
    job = finished(database, test_one_job.submit(database, settings, tenant, model=UNSIGNED))
    assert job.state == "succeeded", job.error_message
    with database() as session:
        images = session.scalars(select(Image).where(Image.job_id == job.id)).all()
    for body in (storage.get(image.s3_key).body for image in images):
        with Pillow.open(io.BytesIO(body)) as opened:
            assert "darkroom" in opened.info
            assert "xmp" not in opened.info
        assert b"c2pa" not in body
    assert len(images) == len(job.seeds)


def test_nothing_of_it_is_loaded_where_nothing_is_signed(tmp_path: Path) -> None:
    said = tmp_path / "modules"
    process = fork_server.fork("light", ["tests.loaded_modules"], os.environ, said)
    assert process.wait(90) == 0
    loaded = set(said.read_text("utf-8").splitlines())
    assert loaded >= {"worker.generate", "worker.cpu", "api.app"}
    assert not [name for name in loaded if name.startswith("c2pa")]


# --- Reading it back -----------------------------------------------------------------------------


def test_the_api_verifies_what_it_stored(
    api: ApiProcess, signer: WorkerProcess, other_api_key: str
) -> None:
    start = make(api.http)
    image = make(api.http, init_image=start["id"], strength=0.6, output_format="jpeg")
    path = f"/v1/images/{image['id']}/provenance"
    answer = api.http.get(path).json()
    assert (answer["state"], answer["digital_source_type"]) == ("untrusted", SOURCE_TYPE)
    manifest = answer["manifest"]
    assert manifest["claim_generator"].startswith("Darkroom ")
    assert manifest["issuer"] == ORGANIZATION
    assert [one["action"] for one in manifest["actions"]] == ["c2pa.opened", "c2pa.edited"]
    assert [(one["relationship"], one["sha256"]) for one in manifest["ingredients"]] == [
        ("parentOf", start["sha256"])
    ]
    assert [one["code"] for one in manifest["problems"]] == ["signingCredential.untrusted"]
    with api.client(other_api_key) as stranger:
        assert stranger.get(path).status_code == 404
    with api.client(None) as nobody:
        assert nobody.get(path).status_code == 401


def test_inspect_tells_a_changed_file_from_its_original(
    api: ApiProcess, signer: WorkerProcess
) -> None:
    body = content(api.http, make(api.http))
    assert inspect(api.http, body)["provenance"]["state"] == "untrusted"
    changed = bytearray(body)
    changed[body.rindex(b"IDAT") + 8] ^= 1
    provenance = inspect(api.http, bytes(changed))["provenance"]
    codes = [one["code"] for one in provenance["manifest"]["problems"]]
    assert (provenance["state"], "assertion.dataHash.mismatch" in codes) == ("invalid", True)
    # A file that was opened and saved keeps its receipt at most: nothing stale is believed.
    with Pillow.open(io.BytesIO(body)) as opened:
        chunks = PngInfo()
        chunks.add_itxt("darkroom", str(opened.info["darkroom"]))
        saved = encode(opened, pnginfo=chunks)
    provenance = inspect(api.http, saved)["provenance"]
    assert provenance == {"state": "none", "digital_source_type": None, "manifest": None}


def test_a_signer_that_the_operator_trusts_is_trusted(
    api: ApiProcess, environment: dict[str, str], tmp_path: Path, signer: WorkerProcess
) -> None:
    image = make(api.http)
    trusted = {"DARKROOM_PROVENANCE_TRUST_FILE": str(signer.log.with_name("certificate.pem"))}
    with ApiProcess(environment | trusted, free_port(), api.key, tmp_path / "log") as other:
        answer = other.http.get(f"/v1/images/{image['id']}/provenance").json()
    assert (answer["state"], answer["manifest"]["problems"]) == ("trusted", [])


def test_nothing_that_a_file_names_is_fetched(api: ApiProcess, signer: WorkerProcess) -> None:
    with Pillow.open(io.BytesIO(content(api.http, make(api.http)))) as opened:
        receipt, pixels = str(opened.info["darkroom"]), opened.convert("RGB")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa"
        xmp = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
            '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/"'
            f' dcterms:provenance="{url}"/></rdf:RDF></x:xmpmeta>'
        )
        chunks = PngInfo()
        chunks.add_itxt("darkroom", receipt)
        chunks.add_itxt("XML:com.adobe.xmp", xmp)
        answer = inspect(api.http, encode(pixels, pnginfo=chunks))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has come
            server.accept()
    assert answer["provenance"]["state"] in ("none", "invalid")


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 6))]
)
def test_a_hostile_manifest_is_no_error(api: ApiProcess, signer: WorkerProcess, seed: int) -> None:
    body = bytearray(content(api.http, make(api.http)))
    start = body.index(b"caBX")
    length = int.from_bytes(body[start - 4 : start])
    randomly = random.Random(seed)
    for _ in range(40):
        body[start + 4 + randomly.randrange(length)] = randomly.randrange(256)
    end = start + 4 + length
    body[end : end + 4] = zlib.crc32(body[start:end]).to_bytes(4)
    assert inspect(api.http, bytes(body))["provenance"]["state"] in ("none", "invalid")


def inspect(http: httpx2.Client, body: bytes) -> dict[str, Any]:
    answer = http.post("/v1/images/inspect", files={"file": ("image.png", body)})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
