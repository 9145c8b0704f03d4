"""Write the receipt of an image: the job's settings and the engine's facts, in one JSON object."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from shared.images.receipts import RECEIPT_VERSION
from shared.jobs.models import Job
from worker.engine.interface import GeneratedImage


@cache
def darkroom_version() -> str:
    """The version of this software; ``dev`` in a checkout that is not installed."""
    try:
        return version("darkroom-server")
    except PackageNotFoundError:
        return "dev"


def make_receipt(job: Job, index: int, made: GeneratedImage) -> dict[str, Any]:
    """Everything that decides the bytes of image `index`, and where it was made."""
    facts = made.facts
    return {
        "receipt_version": RECEIPT_VERSION,
        "kind": job.kind,
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seeds[index],
        "width": job.width,
        "height": job.height,
        "steps": job.steps,
        "executed_steps": made.steps,
        "guidance_scale": job.guidance_scale,
        "strength": job.strength,
        "resize_mode": job.resize_mode,
        "init_image_sha256": job.init_image["sha256"] if job.init_image else None,
        "output_format": job.output_format,
        "scheduler": {
            "name": job.scheduler,
            "class": facts.scheduler_class,
            "config": dict(facts.scheduler_config),
        },
        "model": {
            "name": facts.model,
            "content_hash": facts.content_hash,
            "revision": facts.revision,
        },
        "dtype": facts.dtype,
        "device": facts.device,
        "rows": facts.rows,
        "cpu_threads": facts.cpu_threads,
        "speed": dict(facts.speed),
        "notes": list(facts.notes),
        "software": {
            "darkroom": darkroom_version(),
            "torch": facts.torch_version,
            "diffusers": facts.diffusers_version,
            "cuda": facts.cuda_version,
        },
    }
