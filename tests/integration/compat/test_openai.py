"""OpenAI's image API, as the real `openai` client uses it, on real workers."""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import decode_id
from shared.core.quotas import Quotas
from shared.core.settings import Settings
from shared.jobs.models import IdempotencyKey, Job
from tests.conftest import MODELS, MakeKey
from tests.images import data_url, encode, mandelbrot
from tests.processes import PATIENT, ApiProcess, WorkerProcess, free_port

PNG = encode(mandelbrot())


@pytest.fixture
def client(api: ApiProcess, generate_worker: WorkerProcess) -> Iterator[openai.OpenAI]:
    """The SDK, pointed here; the catalogue's first model is served."""
    with openai.OpenAI(
        base_url=f"{api.url}/openai/v1", api_key=api.key, max_retries=0
    ) as connected:
        yield connected


@pytest.fixture
def new_key(make_key: MakeKey) -> MakeKey:
    """Keys of the tenant `openai`."""
    return partial(make_key, "openai", scopes=["jobs", "images"])


def count_jobs(database: sessionmaker[Session], prompt: str) -> int:
    with database() as session:
        return session.scalars(select(func.count()).where(Job.prompt == prompt)).one()


def test_a_stock_client_gets_exact_receipts(client: openai.OpenAI, api: ApiProcess) -> None:
    raw = client.images.with_raw_response.generate(
        model="dall-e-3",
        prompt="a stock client's red circle",
        n=2,
        size="128x64",
        quality="low",
        style="vivid",
        user="someone",
        extra_body={"seed": 41, "negative_prompt": "blue", "num_inference_steps": 7},
    )
    assert raw.headers["darkroom-ignored"] == "style"
    answer: Any = raw.parse()
    assert [(one.seed, one.job, one.url) for one in answer.data] == [
        *((41, answer.job, None), (42, answer.job, None)),
    ]
    assert (answer.size, answer.quality, answer.output_format) == ("128x64", "low", "png")
    assert (answer.background, answer.model, answer.usage.total_tokens) == ("opaque", "sim", 0)
    job = api.http.get(f"/v1/jobs/{answer.job}").json()
    assert (job["steps"], job["negative_prompt"], job["width"]) == (7, "blue", 128)
    assert job["metadata"] == {"user": "someone"}
    assert answer.created == int(datetime.fromisoformat(job["created_at"]).timestamp())
    for datum, image in zip(answer.data, job["images"], strict=True):
        file = base64.b64decode(datum.b64_json)
        assert (datum.id, hashlib.sha256(file).hexdigest()) == (image["id"], image["sha256"])
        assert Image.open(io.BytesIO(file)).size == (128, 64)
    listed = api.http.get("/v1/jobs", params={"limit": 100}).json()["data"]
    assert answer.job in [one["id"] for one in listed]
    again = api.http.post(
        f"/v1/images/{answer.data[0].id}/reproduce", headers={"Prefer": "wait=60"}
    ).json()
    assert again["verdict"] == "identical"


def test_compression_is_the_files_quality(client: openai.OpenAI, api: ApiProcess) -> None:
    made: dict[tuple[str, int], Any] = {}
    for output_format, compression in (("jpeg", 100), ("jpeg", 0), ("webp", 50), ("png", 50)):
        raw = client.images.with_raw_response.generate(
            prompt="a compressed circle",
            output_format=output_format,  # type: ignore[arg-type]
            output_compression=compression,
            extra_body={"seed": 4},
        )
        answer: Any = raw.parse()
        job = api.http.get(f"/v1/jobs/{answer.job}").json()
        made[output_format, compression] = job
        assert raw.headers.get("darkroom-ignored") == (
            "output_compression" if output_format == "png" else None
        )
    assert [job["output_quality"] for job in made.values()] == [100, 1, 50, None]
    best, worst = (made["jpeg", quality]["images"][0]["bytes"] for quality in (100, 0))
    assert worst < best


def test_quality_is_steps(client: openai.OpenAI, api: ApiProcess) -> None:
    steps = {}
    for quality in ("auto", "standard", "low", "hd", "max"):
        answer: Any = client.images.generate(prompt="quality", quality=quality)  # type: ignore[arg-type]
        steps[quality] = api.http.get(f"/v1/jobs/{answer.job}").json()["steps"]
        assert answer.quality == quality
    assert steps == {"auto": 4, "standard": 4, "low": 2, "hd": 6, "max": 12}


def test_a_url_needs_no_key_and_bears_one(
    client: openai.OpenAI, api: ApiProcess, other_api_key: str, new_key: MakeKey
) -> None:
    answer: Any = client.images.generate(
        prompt="a linked circle", response_format="url", output_format="webp", n=2
    )
    first, second = answer.data
    assert first.b64_json is None
    assert first.url.startswith(f"{api.url}/v1/images/{first.id}/content?")
    sha256 = api.http.get(f"/v1/images/{first.id}").json()["sha256"]
    for key in (None, api.key, other_api_key, "sk-of-another-server"):  # as Open WebUI sends it
        with api.client(key) as reader:
            file = reader.get(first.url)
        assert (file.status_code, file.headers["content-type"]) == (200, "image/webp")
        assert hashlib.sha256(file.content).hexdigest() == sha256
    ticket = first.url.partition("ticket=")[2]
    with api.client(None) as stranger:
        for url in (
            f"{api.url}/v1/images/{second.id}/content?ticket={ticket}",
            first.url[:-1] + ("A" if first.url[-1] != "A" else "B"),
            f"{api.url}/v1/images/{first.id}/content",
            f"{api.url}/v1/images/{first.id}?ticket={ticket}",
        ):
            assert stranger.get(url).status_code == 401, url
    jobs_alone = new_key(scopes=["jobs"])
    mine: Any = client.with_options(api_key=jobs_alone).images.generate(
        prompt="a circle of jobs alone", response_format="url"
    )
    assert httpx2.get(mine.data[0].url, trust_env=False).status_code == 200


def test_both_addresses_lead_to_the_same(client: openai.OpenAI, api: ApiProcess) -> None:
    near: Any = client.with_options(base_url=f"{api.url}/v1").images.generate(
        prompt="the shorter way", extra_query={"api-version": "2026-01-01"}
    )
    assert api.http.get(f"/v1/images/{near.data[0].id}").status_code == 200
    assert api.http.get("/v1/images/generations").status_code == 404


def test_models_in_openais_shape(client: openai.OpenAI) -> None:
    found = client.models.list()
    assert [one.id for one in found][:2] == ["sim", "held"]
    assert {one.object for one in found} == {"model"}
    for name in ("sim", "dall-e-2", "gpt-image-1", "gpt-image-2.5-flare"):
        assert client.models.retrieve(name).id == "sim"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("llama")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "midjourney"}, 404, "model", "model_not_found"),
        ({"size": "1024x1024"}, 400, "size", "size_over_limit"),
        ({"size": "100x100"}, 400, "size", "multiple_of"),
        ({"size": "large"}, 400, "size", "string_pattern_mismatch"),
        ({"n": 40}, 400, "n", "too_many_images"),
        ({"n": 0}, 400, "n", "greater_than_equal"),
        ({"prompt": " "}, 400, "prompt", "empty"),
        ({"output_compression": 101}, 400, "output_compression", "less_than_equal"),
        ({"background": "transparent"}, 400, "background", "literal_error"),
        ({"output_format": "gif"}, 400, "output_format", "literal_error"),
        ({"frame_count": 2}, 400, "frame_count", "unsupported_parameter"),
        ({"num_images": 2}, 400, "n", "unsupported_parameter"),
        ({"wdith": 2}, 400, "wdith", "unsupported_parameter"),
        ({"steps": 3, "num_inference_steps": 4}, 400, "num_inference_steps", "conflict"),
        ({"seed": "7"}, 400, "seed", "int_type"),
        ({"metadata": []}, 400, "metadata", "dict_type"),
        ({"strength": 0.5}, 400, "strength", "strength_without_init_image"),
    ],
)
def test_refusals_are_openais(
    client: openai.OpenAI, body: dict[str, Any], status: int, param: str, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.images.generate(prompt=body.pop("prompt", "a refused circle"), extra_body=body)
    error = refused.value
    assert (error.status_code, error.param, error.code) == (status, param, code)
    assert error.type == "invalid_request_error"
    whole = error.response.json()
    assert whole["status"] == status
    assert whole["error"]["message"] == whole["detail"]
    assert error.request_id == whole["request_id"]


def test_keys_scopes_and_paths_are_as_elsewhere(api: ApiProcess, new_key: MakeKey) -> None:
    path = "/openai/v1/images/generations"
    body = {"prompt": "a stranger's circle"}
    with api.client(None) as stranger:
        refused = stranger.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    with api.client(new_key(scopes=["jobs:read"])) as reader:
        refused = reader.post(path, json=body)
        assert refused.json()["error"]["code"] == "insufficient_scope"
        assert refused.status_code == 403
        assert reader.get("/openai/v1/models").status_code == 200
    nothing = api.http.get("/openai/v1/chat/completions")
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, "not_found")
    assert api.http.get(path).json()["error"]["type"] == "invalid_request_error"
    assert "error" not in api.http.get("/v1/nowhere").json()
    malformed = api.http.post(path, content=b"{", headers={"Content-Type": "application/json"})
    assert (malformed.status_code, malformed.json()["error"]["code"]) == (400, "invalid_json")


def test_an_exhausted_quota_is_not_tried_again(
    client: openai.OpenAI, new_key: MakeKey, settings: Settings
) -> None:
    poor = client.with_options(
        api_key=new_key(quotas=Quotas(gpu_seconds_per_day=1e-6)), max_retries=2
    )
    with pytest.raises(openai.RateLimitError) as refused:
        poor.images.generate(prompt="a circle beyond the quota")
    assert (refused.value.code, refused.value.type) == ("insufficient_quota",) * 2
    headers = refused.value.response
    assert headers.headers["x-should-retry"] == "false"
    assert headers.request.headers["x-stainless-retry-count"] == "0"
    busy = client.with_options(api_key=new_key(quotas=Quotas(concurrent_jobs=1)))
    with busy.with_options(max_retries=0) as one:
        one.post(
            "/images/generations",
            body={"prompt": "first", "model": "unserved"},
            cast_to=httpx2.Response,
            options={"headers": {"Prefer": "wait=0"}},
        )
        with pytest.raises(openai.RateLimitError) as full:
            one.images.generate(prompt="second")
    assert full.value.code == "rate_limit_exceeded"
    assert "x-should-retry" not in full.value.response.headers


def test_a_retry_joins_and_a_first_try_does_not(
    api: ApiProcess, generate_worker: WorkerProcess, database: sessionmaker[Session]
) -> None:
    prompt = "a retried circle"

    def post(count: str | None, key: str | None = None, **fields: Any) -> httpx2.Response:
        headers = {} if count is None else {"X-Stainless-Retry-Count": count}
        with api.client(key or api.key) as sender:
            return sender.post(
                "/openai/v1/images/generations",
                json={"prompt": prompt, **fields},
                headers=headers,
            )

    unheard = post("1")  # its first try never arrived
    joined = post("2")
    assert joined.headers["idempotency-replayed"] == "true"
    assert joined.json() == unheard.json()
    first, second = post("0"), post(None)
    assert len({one.json()["job"] for one in (unheard, first, second)}) == 3
    assert post("1").json()["job"] == second.json()["job"]
    assert count_jobs(database, prompt) == 3
    assert post("1", seed=7).json()["job"] != second.json()["job"]
    with database.begin() as session:  # sixteen minutes pass
        session.execute(
            update(IdempotencyKey)
            .where(IdempotencyKey.key.startswith("\x01openai"))
            .values(created_at=IdempotencyKey.created_at - func.make_interval(0, 0, 0, 0, 0, 16))
        )
    late = post("1")
    assert late.json()["job"] not in {one.json()["job"] for one in (unheard, first, second)}
    assert post("2").json()["job"] == late.json()["job"]


def test_a_retry_of_another_key_joins_nothing(
    api: ApiProcess, generate_worker: WorkerProcess, new_key: MakeKey
) -> None:
    made = []
    for key in (new_key(), new_key()):
        with api.client(key) as sender:
            answer = sender.post(
                "/openai/v1/images/generations",
                json={"prompt": "the same circle"},
                headers={"X-Stainless-Retry-Count": "1"},
            )
        made.append(answer.json()["job"])
    assert made[0] != made[1]


def test_a_retry_joins_a_job_that_still_waits(
    api: ApiProcess, database: sessionmaker[Session]
) -> None:
    body = {"prompt": "a circle that waits", "model": "unserved"}
    made = []
    for count in ("0", "1", "2"):
        answer = api.http.post(
            "/openai/v1/images/generations",
            json=body,
            headers={"X-Stainless-Retry-Count": count, "Prefer": "wait=0"},
        )
        assert (answer.status_code, answer.json()["data"]) == (202, [])
        made.append(answer.json()["job"])
    assert len(set(made)) == 1
    assert count_jobs(database, body["prompt"]) == 1
    api.http.post(f"/v1/jobs/{made[0]}/cancel")
    ended = api.http.post(
        "/openai/v1/images/generations", json=body, headers={"X-Stainless-Retry-Count": "1"}
    )
    assert (ended.status_code, ended.json()["error"]["code"]) == (409, "job_stopped")
    assert ended.headers["x-should-retry"] == "false"
    assert made[0] in ended.json()["error"]["message"]


def test_a_retry_is_known_by_what_was_sent(
    api: ApiProcess, environment: dict[str, str], tmp_path: Path
) -> None:
    """The operator has changed models.toml meanwhile: the model has other steps, then is gone."""

    def send(to: ApiProcess, count: str, **fields: Any) -> httpx2.Response:
        return to.http.post(
            "/openai/v1/images/generations",
            json={"prompt": "a circle sent twice", "model": "unserved", "quality": "low", **fields},
            headers={"X-Stainless-Retry-Count": count, "Prefer": "wait=0"},
        )

    first = send(api, "0")
    assert first.status_code == 202, first.text
    models = MODELS.read_text()
    for number, changed in enumerate(
        (
            models.replace('"unserved"', '"unserved"\nquality_steps = { low = 9 }'),
            models.replace('"unserved"', '"renamed"'),
        )
    ):
        assert changed != models
        catalogue = tmp_path / f"{number}.toml"
        catalogue.write_text(changed)
        other = environment | {"DARKROOM_MODELS_FILE": str(catalogue)}
        log = tmp_path / f"{number}.log"
        with ApiProcess(other, free_port(), api.key, log, factory=PATIENT) as later:
            again = send(later, "1")
            assert (again.status_code, again.json()["job"]) == (202, first.json()["job"])
            assert again.headers["idempotency-replayed"] == "true"
            if number:
                assert send(later, "0").json()["error"]["code"] == "model_not_found"


def test_an_idempotency_key_of_the_clients_own(client: openai.OpenAI) -> None:
    made: list[Any] = [
        client.images.generate(prompt="a keyed circle", extra_headers={"Idempotency-Key": "o-1"})
        for _ in range(2)
    ]
    assert made[0].job == made[1].job
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="another", extra_headers={"Idempotency-Key": "o-1"})
    assert refused.value.code == "idempotency_key_reuse"


@pytest.mark.parametrize("many", [False, True])
def test_an_edit_starts_from_the_image(client: openai.OpenAI, api: ApiProcess, many: bool) -> None:
    image: Any = [("a.png", PNG)] if many else ("a.png", PNG)
    answer: Any = client.images.edit(
        image=image,
        prompt="at night",
        n=2,
        input_fidelity="high",
        extra_body={"seed": 5, "guidance_scale": 3.5, "metadata": {"a": "b"}} if not many else None,
    )
    job = api.http.get(f"/v1/jobs/{answer.job}").json()
    assert (job["kind"], job["strength"], len(job["images"])) == ("img2img", 0.45, 2)
    if not many:
        assert (job["seeds"], job["guidance_scale"]) == ([5, 6], 3.5)
    assert answer.size == f"{job['width']}x{job['height']}"
    again = api.http.post(
        f"/v1/images/{answer.data[0].id}/reproduce", headers={"Prefer": "wait=60"}
    )
    assert again.json()["verdict"] == "identical"


def test_further_images_of_an_edit_are_looked_at(client: openai.OpenAI, api: ApiProcess) -> None:
    files = [(f"{width}.png", encode(mandelbrot(width))) for width in (96, 80, 64)]
    answer: Any = client.images.edit(image=files, prompt="in the style of the others")
    job = api.http.get(f"/v1/jobs/{answer.job}").json()
    assert job["kind"] == "img2img"
    images = [job["init_image"], *(one["image"] for one in job["references"])]
    widths = [api.http.get(f"/v1/uploads/{image}").json()["width"] for image in images]
    assert widths == [96, 80, 64]
    assert {one["scale"] for one in job["references"]} == {0.6}
    again = api.http.post(
        f"/v1/images/{answer.data[0].id}/reproduce", headers={"Prefer": "wait=60"}
    )
    assert again.json()["verdict"] == "identical"
    mine: Any = client.images.edit(
        image=files[:2],
        prompt="by its ID",
        extra_body={"references": [{"image": images[2], "scale": 1.5}]},
    )
    job = api.http.get(f"/v1/jobs/{mine.job}").json()
    assert [one["scale"] for one in job["references"]] == [0.6, 1.5]
    assert job["references"][1]["image"] == images[2]


def test_a_form_has_lists_of_objects(client: openai.OpenAI, api: ApiProcess) -> None:
    source: Any = client.images.generate(prompt="edges to follow")
    control = {"name": "edges", "image": source.data[0].id, "scale": 0.5}
    loras = [{"name": "grain", "scale": 0.8}, {"name": "other-family", "scale": 1.0}]
    answer: Any = client.images.edit(
        image=("a.png", PNG), prompt="listed", extra_body={"controls": [control], "loras": loras}
    )
    job = api.http.get(f"/v1/jobs/{answer.job}").json()
    [shown] = job["controls"]
    assert shown | control == shown
    assert [(one["name"], one["scale"]) for one in job["loras"]] == [
        *(("grain", 0.8), ("other-family", 1.0)),
    ]
    del loras[0]["scale"]  # the client sends both names and then the scale
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(image=("a.png", PNG), prompt="x", extra_body={"loras": loras})
    assert (refused.value.param, refused.value.code) == ("loras", "ambiguous_list")


def test_a_mask_says_by_its_transparency_what_is_repainted(
    client: openai.OpenAI, api: ApiProcess
) -> None:
    mask = mandelbrot().convert("RGBA")
    mask.paste((0, 0, 0, 0), (0, 0, mask.width // 2, mask.height // 2))
    answer: Any = client.images.edit(
        prompt="in the corner", image=("a.png", PNG), mask=("m.png", encode(mask))
    )
    job = api.http.get(f"/v1/jobs/{answer.job}").json()
    assert (job["kind"], job["mask_from_alpha"], job["strength"]) == ("inpaint", True, 1.0)


def test_an_edit_in_json(client: openai.OpenAI, api: ApiProcess) -> None:
    source: Any = client.images.generate(prompt="a first circle")
    url = data_url(PNG)
    for fields in (
        {"image": source.data[0].id},
        {"image": [url], "strength": 0.9},
        {"images": [{"image_url": url}]},
    ):
        answer = api.http.post("/v1/images/edits", json={"prompt": "changed", **fields})
        assert answer.status_code == 200, answer.text
        job = api.http.get(f"/v1/jobs/{answer.json()['job']}").json()
        assert job["kind"] == "img2img"
        assert job["strength"] == fields.get("strength", 0.8)


def test_edits_that_are_refused(client: openai.OpenAI, api: ApiProcess) -> None:
    def refusal(**fields: Any) -> tuple[int, Any, Any]:
        with pytest.raises(openai.APIStatusError) as refused:
            client.images.edit(prompt="refused", **fields)
        return refused.value.status_code, refused.value.param, refused.value.code

    file = ("a.png", PNG)
    assert refusal(image=file, mask=file) == (400, "mask", "empty_mask")
    assert refusal(image=[file, file], model="unserved") == (400, "image", "image_count")
    assert refusal(image=[file] * 4) == (400, "references", "too_long")
    broken = ("b.png", b"hello world")
    assert refusal(image=[file, broken]) == (400, "references/0/image", "image_not_recognized")
    assert refusal(image=file, markup=file) == (400, "markup", "unsupported_parameter")
    assert refusal(image=("a.png", b"GIF89a")) == (400, "image", "image_not_recognized")
    large = b"\x89PNG\r\n\x1a\n" + bytes(10 * 1024 * 1024)
    status, param, code = refusal(image=("a.png", large))
    assert (status, param, code) == (400, "image", "image_too_large")
    for fields in (
        {"seed": "9" * 5000},
        {"metadata": '{"a":' * 300 + "1" + "}" * 300},
        {"references": "none"},
        {"references[a]": "none"},
        {"references[][]": "none"},
    ):
        data = {"prompt": "refused", **fields}
        for files in ({"image": file}, [("image", file), ("image", file)]):
            answer = api.http.post("/v1/images/edits", data=data, files=files)
            assert answer.status_code == 400, answer.text
            param = answer.json()["error"]["param"]
            assert param.partition("/")[0] == next(iter(fields)).partition("[")[0]
    for body in ({}, {"image": "img_00000000000000000000000000"}, {"image": "/etc/passwd"}):
        answer = api.http.post("/openai/v1/images/edits", json={"prompt": "x", **body})
        assert answer.status_code in (400, 404), answer.text
        assert answer.json()["error"]["param"] == "image"


def test_a_stream_shows_previews_and_then_the_images(
    api: ApiProcess, generate_worker: WorkerProcess
) -> None:
    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/openai/v1", api_key=api.key) as client:
            stream = await client.images.generate(
                prompt="a green mountain",
                model="sim",
                n=2,
                stream=True,
                partial_images=2,
                extra_body={"seed": 3, "num_inference_steps": 100},
            )
            return [event async for event in stream]

    events = asyncio.run(run())
    kinds = [event.type for event in events]
    assert kinds[-2:] == ["image_generation.completed"] * 2
    partials = events[:-2]
    assert partials
    assert {one.type for one in partials} == {"image_generation.partial_image"}
    for index in (0, 1):
        mine = [one.partial_image_index for one in partials if one.image_index == index]
        assert mine == list(range(len(mine)))
        assert len(mine) <= 2
    assert Image.open(io.BytesIO(base64.b64decode(partials[0].b64_json))).format == "WEBP"
    assert {one.output_format for one in partials} == {"webp"}
    job = api.http.get(f"/v1/jobs/{events[-1].job}").json()
    for event, image in zip(events[-2:], job["images"], strict=True):
        file = base64.b64decode(event.b64_json)
        assert hashlib.sha256(file).hexdigest() == image["sha256"]
        assert (event.id, event.seed, event.usage.total_tokens) == (image["id"], image["seed"], 0)
    assert events[-1].size == "64x64"


def test_an_edit_can_be_streamed(client: openai.OpenAI) -> None:
    stream: Any = client.images.edit(image=("a.png", PNG), prompt="streamed", stream=True)
    assert [event.type for event in stream] == ["image_edit.completed"]


def test_a_stream_of_a_job_that_is_canceled_ends_with_an_error(api: ApiProcess) -> None:
    path, body = "/openai/v1/images/generations", {"prompt": "a stopped circle", "stream": True}
    with api.http.stream("POST", path, json={**body, "model": "unserved"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        api.http.post(f"{answer.headers['location'].removeprefix(api.url)}/cancel")
        text = "".join(answer.iter_text())
    data = next(line for line in text.splitlines() if line.startswith("data: "))
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "job_stopped"


def test_a_failed_job_is_told_once(
    api: ApiProcess, generate_worker: WorkerProcess, database: sessionmaker[Session]
) -> None:
    body = {"prompt": "a failed circle", "model": "unserved"}
    path = "/openai/v1/images/generations"
    job = api.http.post(path, json=body, headers={"Prefer": "wait=0"}).json()["job"]
    with database.begin() as session:
        session.execute(
            update(Job)
            .where(Job.id == decode_id("job", job))
            .values(
                state="failed",
                error_code="out_of_memory",
                error_message="No room.",
                finished_at=func.now(),
                sequence=Job.sequence + 1,
            )
        )
    answer = api.http.post(path, json=body, headers={"X-Stainless-Retry-Count": "1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
    assert answer.json()["error"]["type"] == "server_error"
    assert "No room." in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


def open_webui(api: ApiProcess, path: str, **request: Any) -> httpx2.Response:
    """A request as Open WebUI's engine `openai` sends it, with the API version of its settings."""
    url = f"{api.url}/openai/v1/images/{path}?api-version=2026-01-01"
    headers = {"Authorization": f"Bearer {api.key}", "X-OpenWebUI-User-Name": "someone"}
    return httpx2.post(url, headers=headers, timeout=60, trust_env=False, **request)


def fetched(api: ApiProcess, datum: dict[str, Any]) -> bytes:
    """An entry of `data` as Open WebUI reads it: its URL with the same header, else base64."""
    if datum.get("url"):
        headers = {"Authorization": f"Bearer {api.key}"}
        file = httpx2.get(datum["url"], headers=headers, trust_env=False)
        assert file.headers["content-type"].split("/")[0] == "image"
        return file.content
    return base64.b64decode(datum["b64_json"])


@pytest.mark.parametrize("response_format", [{}, {"response_format": "b64_json"}])
def test_open_webui_makes_images(
    api: ApiProcess, generate_worker: WorkerProcess, response_format: dict[str, str]
) -> None:
    body = {"model": "dall-e-2", "prompt": "a web", "n": 1, "size": "512x512"}
    params = {"seed": 9, "steps": 2}  # the operator's IMAGES_OPENAI_API_PARAMS
    answer = open_webui(api, "generations", json={**body, **response_format, **params})
    assert answer.status_code == 200, answer.text
    [datum] = answer.json()["data"]
    assert Image.open(io.BytesIO(fetched(api, datum))).size == (512, 512)
    linked = open_webui(api, "generations", json={**body, "response_format": "url"})
    [datum] = linked.json()["data"]
    assert Image.open(io.BytesIO(fetched(api, datum))).size == (512, 512)


def test_open_webui_edits_images(api: ApiProcess, generate_worker: WorkerProcess) -> None:
    form = {"model": "gpt-image-1", "prompt": "a web at night", "n": "1", "size": "128x128"}
    form |= {"stream": "False", "seed": ""}  # a Python client's
    for name, model in (("image", ""), ("image[]", "gpt-image-1")):  # none: nothing was set
        answer = open_webui(
            api,
            "edits",
            data={**form, "model": model, "response_format": "b64_json"},
            files=[(name, ("0b5e.png", PNG, "image/png"))],
        )
        assert answer.status_code == 200, answer.text
        [datum] = answer.json()["data"]
        assert Image.open(io.BytesIO(fetched(api, datum))).size == (128, 128)
    refused = open_webui(
        api,
        "edits",
        data={**form, "background": "transparent"},
        files=[("image", ("0b5e.png", PNG, "image/png"))],
    )
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")
