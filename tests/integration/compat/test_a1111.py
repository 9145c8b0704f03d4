"""The web UI's API, as `webuiapi`, SillyTavern and Open WebUI use it, on real workers."""

import base64
import hashlib
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import pytest
import webuiapi
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from shared.core.quotas import Quotas
from shared.jobs.models import Job
from tests.conftest import MakeKey
from tests.images import encode, mandelbrot
from tests.processes import ApiProcess, WorkerProcess, wait_until

SMALL = {"width": 64, "height": 64, "steps": 4}


def connect(api: ApiProcess, key: str) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{api.url}/sdapi/v1", username="anybody", password=key)


@pytest.fixture
def ui(api: ApiProcess, generate_worker: WorkerProcess) -> webuiapi.WebUIApi:
    """The web UI's client, pointed here; the catalogue's first model is served."""
    return connect(api, api.key)


@pytest.fixture
def new_key(make_key: MakeKey) -> MakeKey:
    """Keys of the tenant `a1111`."""
    return partial(make_key, "a1111", scopes=["jobs", "images"])


@pytest.fixture
def own(api: ApiProcess, new_key: MakeKey) -> Iterator[httpx2.Client]:
    """A client with a key of its own: nobody else's jobs are in its progress."""
    with api.client(new_key()) as http:
        yield http


def in_base64(image: Image.Image, **options: Any) -> str:
    return base64.b64encode(encode(image, **options)).decode()


def post(http: httpx2.Client, body: dict[str, Any], name: str = "txt2img") -> httpx2.Response:
    return http.post(f"/sdapi/v1/{name}", json={"prompt": "a red circle", **SMALL, **body})


def job_of(http: httpx2.Client, answer: httpx2.Response) -> dict[str, Any]:
    """The job behind an answer."""
    assert answer.status_code in (200, 202), answer.text
    found: dict[str, Any] = http.get(
        f"/v1/jobs/{json.loads(answer.json()['info'])['darkroom']['job']}"
    ).json()
    return found


def test_a_stock_client_gets_its_images(ui: webuiapi.WebUIApi, api: ApiProcess) -> None:
    result = ui.txt2img(
        prompt="a stock (circle:1.2)",
        negative_prompt="blue",
        seed=41,
        sampler_name="DPM++ 2M",
        scheduler="Karras",
        cfg_scale=6.5,
        batch_size=2,
        n_iter=2,
        steps=5,
        width=128,
        height=64,
    )
    assert [image.size for image in result.images] == [(128, 64)] * 4
    info = result.info
    assert (info["all_seeds"], info["seed"]) == ([41, 42, 43, 44], 41)
    assert (info["prompt"], info["negative_prompt"]) == ("a stock (circle:1.2)", "blue")
    assert info["all_prompts"] == ["a stock (circle:1.2)"] * 4
    assert (info["width"], info["height"], info["steps"]) == (128, 64, 5)
    assert (info["sampler_name"], info["cfg_scale"], info["batch_size"]) == ("DPM++ 2M", 6.5, 2)
    assert info["sd_model_name"] == "sim"
    prompt, negative, facts = info["infotexts"][1].split("\n")
    assert (prompt, negative) == ("a stock (circle:1.2)", "Negative prompt: blue")
    assert facts.startswith(
        "Steps: 5, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 42, "
        f"Size: 128x64, Model hash: {info['sd_model_hash']}, Model: sim"
    )
    assert result.parameters["n_iter"] == 2
    job = api.http.get(f"/v1/jobs/{info['darkroom']['job']}").json()
    assert (job["scheduler"], job["seeds"]) == ("dpmpp-2m-karras", [41, 42, 43, 44])
    assert (job["prompt_syntax"], job["long_prompt"]) == ("weighted", True)
    assert job["metadata"] == {"api": "a1111"}
    for text, image in zip(result.json["images"], job["images"], strict=True):
        assert hashlib.sha256(base64.b64decode(text)).hexdigest() == image["sha256"]
    assert info["darkroom"]["images"] == [image["id"] for image in job["images"]]
    listed = api.http.get("/v1/jobs", params={"limit": 100}).json()["data"]
    assert job["id"] in [one["id"] for one in listed]
    again = api.http.post(
        f"/v1/images/{job['images'][3]['id']}/reproduce", headers={"Prefer": "wait=60"}
    ).json()
    assert again["verdict"] == "identical"


def test_a_stock_client_asks_for_a_second_pass(ui: webuiapi.WebUIApi, api: ApiProcess) -> None:
    result = ui.txt2img(
        prompt="a red circle",
        **SMALL,
        enable_hr=True,
        hr_scale=1.5,
        hr_upscaler=webuiapi.HiResUpscaler.Lanczos,
        hr_second_pass_steps=10,
        denoising_strength=0.5,
    )
    job = api.http.get(f"/v1/jobs/{result.info['darkroom']['job']}").json()
    # Ten steps run, which is half of a schedule of 20.
    hires = {"scale": 1.5, "strength": 0.5, "steps": 20, "upscaler": "lanczos"}
    assert hires.items() <= job["hires"].items()
    assert job["executed_steps"] == SMALL["steps"] + 10
    assert result.info["denoising_strength"] == 0.5
    facts = "Denoising strength: 0.5, Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Lanczos"
    assert result.info["infotexts"][0].endswith(facts)
    tavern = {
        "hr_checkpoint_name": "Use same checkpoint",
        "hr_sampler_name": "",
        "hr_scheduler": None,
    }
    resized = post(
        api.http,
        {
            **{"enable_hr": True, "hr_resize_x": 128, "hr_resize_y": 128, "hr_upscaler": "None"},
            **{"prompt": "again", "hr_prompt": "again", **tavern},
        },
    )
    hires = job_of(api.http, resized)["hires"]
    assert (hires["width"], hires["scale"], hires["upscaler"]) == (128, 2.0, "lanczos")
    refused = post(api.http, {"enable_hr": True, "hr_resize_x": 128, "hr_resize_y": 256})
    assert refused.json()["errors"][0]["pointer"] == "/hr_resize_x"
    assert result.images[0].size == (job["hires"]["width"], job["hires"]["height"])
    refused = post(api.http, {"enable_hr": True, "hr_scale": 9})
    assert refused.json()["errors"][0]["pointer"] == "/hr_scale"
    refused = post(api.http, {"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"})
    assert refused.json()["errors"][0]["code"] == "upscaler_not_supported"
    refused = post(api.http, {"enable_hr": True, "hr_prompt": "another"})
    assert refused.json()["errors"][0]["pointer"] == "/hr_prompt"


def test_a_stock_client_changes_an_image(ui: webuiapi.WebUIApi, api: ApiProcess) -> None:
    result = ui.img2img(
        images=[mandelbrot()],
        prompt="at night",
        seed=5,
        width=128,
        height=128,
        resize_mode=1,
        denoising_strength=0.5,
        sampler_name="Euler",
    )
    job = api.http.get(f"/v1/jobs/{result.info['darkroom']['job']}").json()
    assert (job["kind"], job["strength"], job["resize_mode"]) == ("img2img", 0.5, "fill")
    assert (job["width"], job["height"], job["scheduler"]) == (128, 128, "euler")
    assert result.info["denoising_strength"] == 0.5
    assert "Denoising strength: 0.5" in result.info["infotexts"][0]
    assert "init_images" not in result.parameters
    again = api.http.post(
        f"/v1/images/{job['images'][0]['id']}/reproduce", headers={"Prefer": "wait=60"}
    ).json()
    assert again["verdict"] == "identical"
    whole = post(
        api.http,
        {
            "init_images": [in_base64(mandelbrot())],
            "include_init_images": True,
            "width": None,
            "height": None,
        },
        "img2img",
    )
    assert job_of(api.http, whole)["strength"] == 0.75
    assert job_of(api.http, whole)["resize_mode"] == "stretch"
    assert whole.json()["parameters"]["init_images"]
    mine = job_of(api.http, post(api.http, {"init_images": [job["images"][0]["id"]]}, "img2img"))
    assert mine["init_image"] == job["images"][0]["id"]


def test_a_stock_client_repaints_a_part(ui: webuiapi.WebUIApi, api: ApiProcess) -> None:
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (0, 0, 48, 32))
    facts = {"prompt": "in the corner", "width": 96, "height": 64, "sampler_name": "Euler"}
    for whole, crop, fill, content in ((True, 16, 1, "original"), (False, None, 0, "fill")):
        result = ui.img2img(
            images=[mandelbrot()],
            mask_image=mask,
            mask_blur=2,
            inpaint_full_res=whole,
            inpaint_full_res_padding=16,
            inpainting_fill=fill,
            **facts,
        )
        job = api.http.get(f"/v1/jobs/{result.info['darkroom']['job']}").json()
        assert (job["kind"], job["mask_blur"], job["padding_mask_crop"]) == ("inpaint", 2, crop)
        assert job["masked_content"] == content
        assert result.images[0].getpixel((90, 60)) == mandelbrot().getpixel((90, 60))
        assert "mask" not in result.parameters
    again = api.http.post(
        f"/v1/images/{job['images'][0]['id']}/reproduce", headers={"Prefer": "wait=60"}
    ).json()
    assert again["verdict"] == "identical"
    sent = {"init_images": [in_base64(mandelbrot())], "mask": in_base64(mask)}
    for name, value in (("inpainting_fill", 2), ("inpainting_mask_invert", 2), ("mask", "AAAA")):
        refused = post(api.http, {**sent, name: value}, "img2img")
        assert refused.status_code == 422, refused.text
        assert refused.json()["errors"][0]["pointer"] == f"/{name}"


def test_an_inverted_mask_repaints_what_is_black(ui: webuiapi.WebUIApi, api: ApiProcess) -> None:
    mask = Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 48, 64))
    facts = {"prompt": "all but the left", "width": 96, "height": 64, "mask_blur": 0}
    left, right = (20, 30), (80, 30)
    for inverts, (same, other) in ((0, (right, left)), (1, (left, right))):
        made = ui.img2img(
            images=[mandelbrot()],
            mask_image=mask,
            inpainting_mask_invert=inverts,
            inpaint_full_res=False,
            **facts,
        )
        assert made.images[0].getpixel(same) == mandelbrot().getpixel(same)
        assert made.images[0].getpixel(other) != mandelbrot().getpixel(other)
    sent = {"init_images": [in_base64(mandelbrot())], "inpainting_mask_invert": 1}
    for wrong, name in (
        (in_base64(Image.new("L", (96, 64), 255)), "mask"),
        ("AAAA", "mask"),
        (made.info["darkroom"]["images"][0], "inpainting_mask_invert"),
    ):
        refused = post(api.http, {**sent, "mask": wrong}, "img2img")
        assert refused.status_code == 422, refused.text
        assert refused.json()["errors"][0]["pointer"] == f"/{name}"


def test_an_ip_adapters_units_are_references(ui: webuiapi.WebUIApi, api: ApiProcess) -> None:
    facts = {
        "image": mandelbrot(),
        "module": "ip-adapter_clip_sd15",
        "model": "ip-adapter_sd15 [6a3f]",
    }
    units = [webuiapi.ControlNetUnit(**facts, weight=0.7)]
    units += [webuiapi.ControlNetUnit(image=mandelbrot(), model="edges")]
    result = ui.txt2img(
        prompt="a circle like another", **SMALL, controlnet_units=units, alwayson_scripts={}
    )
    job = api.http.get(f"/v1/jobs/{result.info['darkroom']['job']}").json()
    assert [one["scale"] for one in job["references"]] == [0.7]
    assert [one["name"] for one in job["controls"]] == ["edges"]
    sent = {"module": "ip-adapter-auto", "image": in_base64(mandelbrot())}
    for wrong, code in (
        ({"weight": 3}, "less_than_equal"),
        ({"guidance_end": 0.5}, "unsupported_parameter"),
        ({"module": "ip-adapter_face_id"}, "unsupported_parameter"),
        ({"image": "AAAA"}, "image_not_recognized"),
    ):
        refused = post(api.http, {"alwayson_scripts": {"controlnet": {"args": [sent | wrong]}}})
        assert refused.status_code == 422, refused.text
        [error] = refused.json()["errors"]
        assert (error["pointer"], error["code"]) == ("/alwayson_scripts/ControlNet", code)
    without: dict[str, Any] = {"alwayson_scripts": {"controlnet": {"args": [sent]}}}
    without["override_settings"] = {"sd_model_checkpoint": "unserved"}
    [error] = post(api.http, without).json()["errors"]
    assert error["code"] == "references_not_supported"


@pytest.mark.parametrize("file_format", ["jpg", "webp"])
def test_a_file_has_the_quality_of_the_web_uis_setting(api: ApiProcess, file_format: str) -> None:
    settings = {"samples_format": file_format, "jpeg_quality": 40}
    job = job_of(api.http, post(api.http, {"override_settings": settings}))
    assert job["output_quality"] == 40
    settings["webp_lossless"] = True
    job = job_of(api.http, post(api.http, {"override_settings": settings}))
    assert job["output_quality"] == (None if file_format == "webp" else 40)
    settings["jpeg_quality"] = 0
    if file_format == "jpg":
        refused = post(api.http, {"override_settings": settings})
        assert refused.json()["errors"][0]["pointer"] == "/override_settings/jpeg_quality"


def test_a_stock_client_shows_a_controlnet_an_image(ui: webuiapi.WebUIApi, api: ApiProcess) -> None:
    facts = {"image": mandelbrot(), "model": "edges [d14c016b]", "weight": 0.8, "guidance_end": 0.5}
    canny = {"module": "canny", "threshold_a": 50, "threshold_b": 150}
    off = webuiapi.ControlNetUnit(model="none", module="depth", enabled=False)
    units = [webuiapi.ControlNetUnit(**facts, **canny), off]
    result = ui.txt2img(
        prompt="a circle with edges", **SMALL, controlnet_units=units, alwayson_scripts={}
    )
    job = api.http.get(f"/v1/jobs/{result.info['darkroom']['job']}").json()
    [control] = job["controls"]
    assert control.pop("image").startswith("upl_")
    expected = {"name": "edges", "scale": 0.8, "start": 0.0, "end": 0.5, "preprocess": "canny"}
    assert expected | {"low": 50, "high": 150} == control
    assert "alwayson_scripts" not in result.parameters
    again = api.http.post(
        f"/v1/images/{job['images'][0]['id']}/reproduce", headers={"Prefer": "wait=60"}
    )
    assert again.json()["verdict"] == "identical"
    sent = {"model": "edges", "image": in_base64(mandelbrot())}
    for wrong, code in (
        ({"module": "openpose"}, "unsupported_parameter"),
        ({"control_mode": "My prompt is more important"}, "unsupported_parameter"),
        ({"mask": in_base64(mandelbrot())}, "unsupported_parameter"),
        ({"model": "None"}, "unknown_controlnet"),
        ({"image": None}, "missing"),
        ({"weight": 5}, "less_than_equal"),
        ({"weight": "much"}, "float_type"),
    ):
        scripts = {"controlnet": {"args": [sent | wrong]}}
        refused = post(api.http, {"alwayson_scripts": scripts})
        assert refused.status_code == 422, refused.text
        [error] = refused.json()["errors"]
        assert (error["pointer"], error["code"]) == ("/alwayson_scripts/ControlNet", code)
    start = {
        "init_images": [in_base64(mandelbrot())],
        "alwayson_scripts": {"controlnet": {"args": [{"model": "edges"}]}},
    }
    job = job_of(api.http, post(api.http, start, "img2img"))
    assert [one["name"] for one in job["controls"]] == ["edges"]


def test_a_stock_clients_lists(ui: webuiapi.WebUIApi) -> None:
    assert ui.util_get_model_names() == ["demo", "held", "sim", "unserved"]
    assert {"Euler a", "DPM++ 2M", "DDIM", "UniPC", "LCM"} <= set(ui.util_get_sampler_names())
    assert ui.util_get_scheduler_names() == ["automatic", "karras", "uniform"]
    assert "grain" in [one["name"] for one in ui.get_loras()]
    assert [one["name"] for one in ui.get_upscalers()] == ["None", "Lanczos"]
    assert [one["name"] for one in ui.get_latent_upscale_modes()] == ["Latent"]
    assert ui.get_embeddings() == {"loaded": {}, "skipped": {}}
    for read in (
        *(ui.get_sd_vae, ui.get_hypernetworks, ui.get_face_restorers, ui.get_prompt_styles),
        ui.get_realesrgan_models,
    ):
        assert isinstance(read(), list), read
    assert ui.get_scripts() == {"txt2img": [], "img2img": []}
    assert set(ui.get_memory()) == {"ram", "cuda"}
    assert ui.get_cmd_flags() == {}
    assert ui.refresh_checkpoints() is None


def test_a_key_chooses_its_model(
    api: ApiProcess, generate_worker: WorkerProcess, demo_worker: WorkerProcess, new_key: MakeKey
) -> None:
    first, second = (connect(api, new_key()) for _ in range(2))
    assert first.util_get_current_model() == "sim"
    first.util_set_model("demo")
    assert first.util_get_current_model() == "demo"
    assert second.util_get_current_model() == "sim"
    made = [
        one.txt2img(prompt="a circle", **SMALL).info["sd_model_name"] for one in (first, second)
    ]
    assert made == ["demo", "sim"]
    named = first.txt2img(
        prompt="a circle",
        override_settings={"sd_model_checkpoint": "sim.safetensors [abcdef0123]"},
        **SMALL,
    )
    assert named.info["sd_model_name"] == "sim"
    assert first.util_get_current_model() == "demo"
    # Open WebUI sends all options back with another model.
    assert first.set_options(first.get_options() | {"sd_model_checkpoint": "held"}) is None
    assert first.util_get_current_model() == "held"
    unknown = first.set_options({"sd_model_checkpoint": "llama"})
    assert unknown["errors"][0]["code"] == "model_not_found"
    fixed = first.set_options({"sd_model_checkpoint": "sim", "CLIP_stop_at_last_layers": 2})
    assert fixed["errors"][0]["pointer"] == "/CLIP_stop_at_last_layers"
    assert first.util_get_current_model() == "held"


def test_loras_are_written_in_the_prompt(
    ui: webuiapi.WebUIApi, api: ApiProcess, demo_worker: WorkerProcess
) -> None:
    result = ui.txt2img(
        prompt="<lora:grain:0.8> a mountain",
        override_settings={"sd_model_checkpoint": "demo"},
        sampler_name="Euler",
        **SMALL,
    )
    job = api.http.get(f"/v1/jobs/{result.info['darkroom']['job']}").json()
    assert job["prompt"] == "a mountain"
    assert job["loras"] == [{"name": "grain", "scale": 0.8}]
    assert result.info["infotexts"][0].startswith("<lora:grain:0.8> a mountain\n")
    assert 'Lora hashes: "grain: ' in result.info["infotexts"][0]
    without = post(
        api.http,
        {
            "prompt": "<lora:grain> a mountain",
            "disable_extra_networks": True,
            "override_settings": {"sd_model_checkpoint": "demo"},
        },
    )
    assert job_of(api.http, without)["loras"] == []


def sillytavern(api: ApiProcess, **fields: Any) -> dict[str, Any]:
    """What SillyTavern's server posts: its own `url` and `auth` are in the body, too."""
    return {
        "url": api.url,
        "auth": f"user:{api.key}",
        "prompt": "a tavern",
        "negative_prompt": "modern",
        "sampler_name": "Euler a",
        "scheduler": "automatic",
        "steps": 4,
        "cfg_scale": 7,
        "width": 64,
        "height": 64,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 2,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
        **fields,
    }


def test_sillytavern(api: ApiProcess, generate_worker: WorkerProcess) -> None:
    basic = "Basic " + base64.b64encode(f"user:{api.key}".encode()).decode()
    with httpx2.Client(
        base_url=api.url, headers={"Authorization": basic}, timeout=60, trust_env=False
    ) as node:
        options = node.get("/sdapi/v1/options").json()
        assert "forge_preset" not in options
        for name in ("upscalers", "latent-upscale-modes", "samplers", "schedulers"):
            assert all(one["name"] for one in node.get(f"/sdapi/v1/{name}").json())
        assert node.get("/sdapi/v1/sd-vae").json() == []
        assert node.get("/sdapi/v1/sd-models").json()[0]["title"] == "sim"
        chosen = node.post("/sdapi/v1/options", json={"sd_model_checkpoint": "sim"})
        assert chosen.status_code == 200
        assert {"progress", "state"} <= set(node.get("/sdapi/v1/progress").json())
        answer = node.post("/sdapi/v1/txt2img", json=sillytavern(api))
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["images"]) == 1
        assert api.key not in answer.text
        refused = node.post("/sdapi/v1/txt2img", json=sillytavern(api, restore_faces=True))
        assert (refused.status_code, refused.json()["detail"]) == (
            422, "restore_faces is not supported.",
        )  # fmt: skip
        faces = {"ADetailer": {"args": [True, True, {"ad_model": "face_yolov8n.pt"}]}}
        refused = node.post("/sdapi/v1/txt2img", json=sillytavern(api, alwayson_scripts=faces))
        assert refused.json()["errors"][0]["pointer"] == "/alwayson_scripts/ADetailer"
        assert node.post("/sdapi/v1/interrupt").json() == {}


def test_open_webui(api: ApiProcess, generate_worker: WorkerProcess) -> None:
    """Its engine `automatic1111`; without a user and a password the header is there, and empty."""
    with httpx2.Client(base_url=api.url, timeout=60, trust_env=False) as session:
        refused = session.get("/sdapi/v1/options", headers={"authorization": ""})
        assert refused.status_code == 401
        session.headers["authorization"] = (
            "Basic " + base64.b64encode(f"darkroom:{api.key}".encode()).decode()
        )
        options = session.get("/sdapi/v1/options").json()
        assert options["sd_model_checkpoint"]
        options["sd_model_checkpoint"] = "sim"
        session.post("/sdapi/v1/options", json=options).raise_for_status()
        models = session.get("/sdapi/v1/sd-models").json()
        assert models[0]["title"] == models[0]["model_name"] == "sim"
        body = {"prompt": "a web", "batch_size": 2, "width": 128, "height": 64, "steps": 4}
        answer = session.post("/sdapi/v1/txt2img", json={**body, "negative_prompt": "spider"})
        made = [base64.b64decode(image) for image in answer.json()["images"]]
        assert [Image.open(io.BytesIO(file)).size for file in made] == [(128, 64)] * 2
        assert isinstance(answer.json()["info"], str)


SWAGGER = {
    "styles": [""], "subseed": 3, "subseed_strength": 0, "seed_resize_from_h": -1,
    "seed_resize_from_w": -1, "tiling": False, "eta": 0, "s_min_uncond": 0, "s_churn": 0,
    "s_tmax": None, "s_tmin": 0, "s_noise": 1, "refiner_checkpoint": "", "refiner_switch_at": 0.8,
    "comments": {}, "firstphase_width": 0, "force_task_id": "x", "script_name": "",
    "script_args": [1], "hr_prompt": "x", "infotext": "", "firstpass_image": None,
    "alwayson_scripts": {
        "ControlNet": {"args": [{"enabled": False, "model": "x"}]}, "ADetailer": {"args": [False]},
    },
    "override_settings": {"sd_vae": "Automatic", "samples_format": "webp", "filter_nsfw": False},
    "seed": "-1", "scheduler": None, "sampler_name": None, "sampler_index": "Euler a",
}  # fmt: skip


def test_neutral_values_pass(own: httpx2.Client, generate_worker: WorkerProcess) -> None:
    answer = post(own, SWAGGER)
    job = job_of(own, answer)
    assert (job["scheduler"], job["output_format"]) == ("euler-ancestral", "webp")
    without = post(own, {"send_images": False})
    assert (without.status_code, without.json()["images"]) == (200, [])
    assert len(json.loads(without.json()["info"])["infotexts"]) == 1
    assert job_of(own, without)["scheduler"] == "dpmpp-2m"


@pytest.mark.parametrize(
    ("body", "status", "pointer", "code"),
    [
        ({"tiling": True}, 422, "/tiling", "unsupported_parameter"),
        ({"styles": ["anime"]}, 422, "/styles", "unsupported_parameter"),
        ({"subseed_strength": 0.1}, 422, "/subseed_strength", "unsupported_parameter"),
        ({"script_name": "x/y plot"}, 422, "/script_name", "unsupported_parameter"),
        ({"refiner_checkpoint": "r"}, 422, "/refiner_checkpoint", "unsupported_parameter"),
        ({"eta": 0.5}, 422, "/eta", "unsupported_parameter"),
        ({"widht": 64}, 422, "/widht", "unsupported_parameter"),
        ({"clip_skip": 2}, 422, "/clip_skip", "unsupported_parameter"),
        (
            {"override_settings": {"CLIP_stop_at_last_layers": 2}},
            422,
            "/override_settings/CLIP_stop_at_last_layers",
            "unsupported_parameter",
        ),
        (
            {"override_settings": {"sd_model_checkpoint": "llama"}},
            404,
            "/override_settings/sd_model_checkpoint",
            "model_not_found",
        ),
        (
            {"override_settings": {"samples_format": "gif"}},
            422,
            "/override_settings/samples_format",
            "literal_error",
        ),
        (
            {"alwayson_scripts": {"ControlNet": {"args": [{"model": "x"}]}}},
            422,
            "/alwayson_scripts/ControlNet",
            "missing",
        ),
        ({"sampler_name": "DPM fast"}, 422, "/sampler_name", "unknown_sampler"),
        ({"sampler_name": "Euler", "scheduler": "Karras"}, 422, "/scheduler", "unknown_sampler"),
        ({"sampler_name": "Euler", "scheduler": "Beta"}, 422, "/scheduler", "unknown_sampler"),
        ({"cfg_scale": 99}, 422, "/cfg_scale", "less_than_equal"),
        ({"batch_size": 8, "n_iter": 5}, 422, "/batch_size", "too_many_images"),
        ({"width": 1024}, 422, "/width", "size_over_limit"),
        ({"width": "wide"}, 422, "/width", "int_parsing"),
        ({"prompt": " "}, 422, "/prompt", "empty"),
        ({"prompt": "<hypernet:x:1> a"}, 422, "/prompt", "unsupported_network"),
        ({"prompt": "<lora:x:1:0.5> a"}, 422, "/prompt", "unsupported_lora_scale"),
        ({"prompt": "<lora:x:much> a"}, 422, "/prompt", "unsupported_lora_scale"),
        ({"prompt": "<lora:nowhere:1> a"}, 422, "/prompt", "unknown_lora"),
        ({"prompt": "<lora:grain:9> a"}, 422, "/prompt", "less_than_equal"),
        *(
            ({"enable_hr": True, name: 10**400}, 422, f"/{name}", "less_than_equal")
            for name in ("steps", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y")
        ),
        ({"enable_hr": True, "width": 10**400}, 422, "/width", "less_than_equal"),
        (
            {"enable_hr": True, "denoising_strength": 1e-320},
            422,
            "/denoising_strength",
            "strength_too_low",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    api: ApiProcess, body: dict[str, Any], status: int, pointer: str, code: str
) -> None:
    answer = post(api.http, body)
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status), answer.text
    assert (problem["errors"][0]["pointer"], problem["errors"][0]["code"]) == (pointer, code)
    assert (problem["error"], problem["body"]) == ("RequestValidationError", "")
    assert isinstance(problem["detail"], str)


def test_initial_images_that_are_refused(api: ApiProcess) -> None:
    for images, code in (
        (None, "image_count"),
        ([], "image_count"),
        ([in_base64(mandelbrot())] * 2, "image_count"),
        (["bm90IGFuIGltYWdl"], "image_not_recognized"),
        (["/etc/passwd"], None),
        (["http://169.254.169.254/latest"], None),
        (["img_00000000000000000000000000"], "init_image_not_found"),
    ):
        answer = post(api.http, {"init_images": images}, "img2img")
        assert answer.status_code in (404, 422), answer.text
        assert answer.json()["errors"][0]["pointer"] == "/init_images"
        assert code in (None, answer.json()["errors"][0]["code"]), answer.text
    assert (
        post(api.http, {"resize_mode": 3}, "img2img").json()["errors"][0]["pointer"]
        == "/resize_mode"
    )


def test_keys_come_as_passwords(api: ApiProcess, new_key: MakeKey) -> None:
    def status(
        header: str | bytes | None, path: str = "/sdapi/v1/options"
    ) -> tuple[int, str | None]:
        sent = header.encode() if isinstance(header, str) else header
        headers = {} if sent is None else {b"Authorization": sent}
        answer = httpx2.get(api.url + path, headers=headers, trust_env=False)
        return answer.status_code, answer.headers.get("www-authenticate")

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    for good in (f"Bearer {api.key}", basic(f"me:{api.key}"), basic(f"{api.key}:"), basic(api.key)):
        assert status(good)[0] == 200, good
    wrong = f"{api.key[:-1]}{'A' if api.key[-1] != 'A' else 'B'}"
    for bad in (
        *(None, "", "Basic", "Basic !", "Basic é".encode("latin-1"), basic(":")),
        *(basic(f"me:{wrong}"), basic("me:hunter2"), f"Basic {api.key}", f"Bearer {wrong}"),
    ):
        code, challenge = status(bad)
        assert code == 401, bad
        # A browser that is asked for Basic remembers the key, and sends it for any site.
        assert challenge is not None
        assert "basic" not in challenge.lower()
    assert status(basic(f"me:{api.key}"), "/v1/jobs")[0] == 401
    with api.client(new_key(scopes=["jobs:read"])) as reader:
        assert reader.get("/sdapi/v1/progress").status_code == 200
        for name in ("txt2img", "interrupt", "options", "skip"):
            refused = reader.post(f"/sdapi/v1/{name}", json={})
            assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
            assert refused.json()["error"] == "HTTPException"
        assert reader.post("/sdapi/v1/png-info", json={"image": ""}).status_code == 403
    nothing = api.http.get("/sdapi/v1/nothing")
    assert (nothing.status_code, nothing.json()["error"]) == (404, "HTTPException")


def test_quotas_hold(api: ApiProcess, new_key: MakeKey) -> None:
    with api.client(new_key(quotas=Quotas(concurrent_jobs=1))) as busy:
        unserved = {"override_settings": {"sd_model_checkpoint": "unserved"}}
        first = busy.post(
            "/sdapi/v1/txt2img",
            json={"prompt": "first", **unserved},
            headers={"Prefer": "wait=0"},
        )
        assert (first.status_code, first.json()["images"]) == (202, [])
        full = busy.post("/sdapi/v1/txt2img", json={"prompt": "second", **unserved})
        assert (full.status_code, full.json()["code"]) == (429, "too_many_jobs")
        busy.post("/sdapi/v1/interrupt")
    with api.client(new_key(quotas=Quotas(models=["held"]))) as narrow:
        refused = post(narrow, {})
        assert (refused.status_code, refused.json()["code"]) == (403, "model_not_allowed")


@pytest.mark.long
def test_progress_shows_the_keys_running_job(
    own: httpx2.Client, api: ApiProcess, demo_worker: WorkerProcess, new_key: MakeKey
) -> None:
    idle = own.get("/sdapi/v1/progress").json()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)
    demo = {"override_settings": {"sd_model_checkpoint": "demo"}, "steps": 100, "n_iter": 4}
    seen: list[dict[str, Any]] = []

    def shown() -> bool:
        seen.append(own.get("/sdapi/v1/progress").json())
        return bool(seen[-1]["current_image"])

    with ThreadPoolExecutor(1) as thread, api.client(new_key()) as other:
        making = thread.submit(post, own, demo)
        wait_until(shown, 60)
        now = seen[-1]
        assert Image.open(io.BytesIO(base64.b64decode(now["current_image"]))).format == "WEBP"
        assert 0 < now["progress"] <= 1
        assert now["eta_relative"] >= 0
        assert (now["state"]["sampling_steps"], now["state"]["job_count"]) == (100, 1)
        quick = own.get("/sdapi/v1/progress", params={"skip_current_image": True}).json()
        assert quick["current_image"] is None
        assert other.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
        assert making.result(timeout=120).status_code == 200
    assert own.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0


def test_interrupt_stops_the_keys_own_jobs_alone(
    own: httpx2.Client,
    api: ApiProcess,
    new_key: MakeKey,
    database: sessionmaker[Session],
) -> None:
    unserved = {"override_settings": {"sd_model_checkpoint": "unserved"}}

    def submit(http: httpx2.Client) -> str:
        answer = http.post(
            "/sdapi/v1/txt2img", json={"prompt": "w", **unserved}, headers={"Prefer": "wait=0"}
        )
        return str(job_of(http, answer)["id"])

    with api.client(new_key()) as other, ThreadPoolExecutor(1) as thread:
        mine, theirs, strangers = submit(own), submit(other), submit(api.http)
        elsewhere = own.post("/v1/jobs", json={"prompt": "w", "model": "unserved"}).json()["id"]
        waiting = thread.submit(post, own, unserved)
        wait_until(lambda: own.get("/sdapi/v1/progress").json()["state"]["job_count"] == 2, 30)
        assert own.post("/sdapi/v1/skip").json() == {}  # none runs
        assert own.post("/sdapi/v1/interrupt").json() == {}
        stopped = waiting.result(timeout=60)
        assert (stopped.status_code, stopped.json()["code"]) == (409, "job_stopped")
        states = {
            job: own.get(f"/v1/jobs/{job}").json()["state"] for job in (mine, theirs, elsewhere)
        }
        assert states == {mine: "canceled", theirs: "queued", elsewhere: "queued"}
        assert api.http.get(f"/v1/jobs/{strangers}").json()["state"] == "queued"
        for http, job in ((own, theirs), (own, elsewhere), (api.http, strangers)):
            http.post(f"/v1/jobs/{job}/cancel")


def test_a_running_job_is_interrupted(
    own: httpx2.Client, demo_worker: WorkerProcess, database: sessionmaker[Session]
) -> None:
    demo = {"override_settings": {"sd_model_checkpoint": "demo"}, "steps": 100, "n_iter": 16}
    with ThreadPoolExecutor(1) as thread:
        making = thread.submit(post, own, {"prompt": "a long march", **demo})
        wait_until(lambda: own.get("/sdapi/v1/progress").json()["progress"] > 0, 60)
        began = time.monotonic()
        own.post("/sdapi/v1/skip")
        answer = making.result(timeout=60)
    assert answer.status_code in (200, 409), answer.text
    if answer.status_code == 200:
        assert 0 < len(answer.json()["images"]) < 16
    with database() as session:
        state = session.scalars(select(Job.state).where(Job.prompt == "a long march")).one()
    assert state == "canceled", time.monotonic() - began


def test_png_info(ui: webuiapi.WebUIApi, api: ApiProcess) -> None:
    result = ui.txt2img(prompt="an honest circle", seed=3, **SMALL)
    told = api.http.post("/sdapi/v1/png-info", json={"image": result.json["images"][0]}).json()
    assert told["info"].startswith("an honest circle\nSteps: 4, ")
    assert (told["parameters"]["Prompt"], told["parameters"]["Seed"]) == ("an honest circle", "3")
    foreign = PngInfo()
    foreign.add_text(
        "parameters", 'a (cat)\nNegative prompt: dog\nSteps: 20, Size: 64x64, X: "a, b"'
    )
    foreign.add_text("Software", "another")
    file = in_base64(mandelbrot(), pnginfo=foreign)
    read = api.http.post(
        "/sdapi/v1/png-info", json={"image": f"data:image/png;base64,{file}"}
    ).json()
    assert read["items"] == {"Software": "another"}
    assert read["parameters"] == {
        "Prompt": "a (cat)", "Negative prompt": "dog", "Steps": "20", "Size": "64x64",
        "X": '"a, b"',
    }  # fmt: skip
    bare = api.http.post("/sdapi/v1/png-info", json={"image": in_base64(mandelbrot())}).json()
    assert bare == {"info": "", "items": {}, "parameters": {}}
    for bad in ("!", "", "bm90IGFuIGltYWdl"):
        refused = api.http.post("/sdapi/v1/png-info", json={"image": bad})
        assert refused.status_code == 422, bad
    as_webp = {"prompt": "a webp", "override_settings": {"samples_format": "webp"}}
    [webp] = post(api.http, as_webp).json()["images"]
    told = api.http.post("/sdapi/v1/png-info", json={"image": webp}).json()
    assert told["info"].startswith("a webp\nSteps: 4, ")


def test_an_idempotency_key_of_the_clients_own(
    own: httpx2.Client, generate_worker: WorkerProcess
) -> None:
    made = [
        own.post(
            "/sdapi/v1/txt2img",
            json={"prompt": "once", **SMALL},
            headers={"Idempotency-Key": "a1111-once"},
        )
        for _ in range(2)
    ]
    assert job_of(own, made[0])["id"] == job_of(own, made[1])["id"]
    assert made[1].headers["idempotency-replayed"] == "true"
    assert made[0].json()["images"] == made[1].json()["images"]


def test_a_retry_is_known_by_what_was_sent(
    own: httpx2.Client, generate_worker: WorkerProcess
) -> None:
    """The key's model has changed meanwhile, and with it the job that the body means."""

    def send(name: str = "txt2img", **fields: Any) -> httpx2.Response:
        body = {"prompt": "a (red) circle", "metadata": None, **SMALL, **fields}
        headers = {"Idempotency-Key": "a1111-meaning", "Prefer": "wait=0"}
        return own.post(f"/sdapi/v1/{name}", json=body, headers=headers)

    first = job_of(own, send())
    options = own.post("/sdapi/v1/options", json={"sd_model_checkpoint": "demo"})
    assert options.status_code == 200, options.text
    again = send()
    assert (job_of(own, again)["id"], again.headers["idempotency-replayed"]) == (
        first["id"],
        "true",
    )
    for other in (send(seed=7), send("img2img"), send(enable_hr=False)):
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reuse")
