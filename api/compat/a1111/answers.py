"""Jobs as the web UI's answers."""

import json
from collections.abc import Sequence
from typing import Any

from api.compat.a1111.samplers import LABELS
from api.compat.a1111.schemas import GeneratedImages, Txt2Img
from api.jobs.schemas import Job
from shared.core.ids import encode_id
from shared.core.settings import darkroom_version
from shared.images.models import Image
from shared.images.receipts import parameters_text

_IMAGES_SENT = {"init_images", "mask", "alwayson_scripts"}


def serialize(
    job: Job, body: Txt2Img, images: Sequence[Image], files: list[str]
) -> GeneratedImages:
    """The web UI's answer about a job."""
    known = set(type(body).model_fields) - (set() if body.repeats_images else _IMAGES_SENT)
    return GeneratedImages(
        images=files,
        parameters=body.model_dump(mode="json", include=known),
        info=json.dumps(_info(job, body, images)),
    )


def _info(job: Job, body: Txt2Img, images: Sequence[Image]) -> dict[str, Any]:
    sampler, schedule = LABELS.get(job.scheduler, (job.scheduler, ""))
    seeds = [image.seed for image in images] or list(job.seeds)
    prompt, negative = body.prompt or "", body.negative_prompt or ""
    first = images[0].receipt if images else {"model": {}}
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(seeds),
        "subseed_strength": 0,
        "width": job.width,
        "height": job.height,
        "sampler_name": sampler,
        "cfg_scale": job.guidance_scale,
        "steps": job.steps,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.model,
        "sd_model_hash": str(first["model"].get("content_hash", ""))[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": job.hires.strength if job.hires is not None else job.strength,
        "extra_generation_params": {"Schedule type": schedule} if schedule else {},
        "index_of_first_image": 0,
        "infotexts": [infotext(image.receipt, prompt) for image in images],
        "styles": [],
        "job_timestamp": f"{job.created_at:%Y%m%d%H%M%S}",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"darkroom {darkroom_version()}",
        "darkroom": {
            "job": job.id,
            "images": [encode_id("img", image.id) for image in images],
        },
    }


def infotext(receipt: dict[str, Any], prompt: str) -> str:
    """An image's settings as the web UI writes them; with the prompt as sent, LoRAs and all."""
    scheduler = receipt["scheduler"]["name"]
    if scheduler in LABELS:
        sampler, schedule = LABELS[scheduler]
        scheduler = f"{sampler}, Schedule type: {schedule}"
    text = parameters_text({**receipt, "prompt": prompt, "scheduler": {"name": scheduler}})
    if hires := receipt.get("hires"):
        steps = receipt["second_pass"]["executed_steps"]
        text += (
            f", Denoising strength: {hires['strength']}, Hires upscale: {hires['scale']:g}, "
            f"Hires steps: {steps}, Hires upscaler: {hires['upscaler'].capitalize()}"
        )
    return text
