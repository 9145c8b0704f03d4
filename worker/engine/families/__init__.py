"""The families whose images are computed row by row: one module each, found by the class.

`docs/add-a-family.md` says how to add one.
"""

from typing import Any

from shared.core.errors import ModelUnavailable
from shared.core.families import family_of_pipeline
from worker.engine.families.base import Family
from worker.engine.families.flux import Flux
from worker.engine.families.flux2 import Flux2, Flux2Klein
from worker.engine.families.lumina2 import Lumina2
from worker.engine.families.pixart import PixArtSigma
from worker.engine.families.qwen_image import QwenImage
from worker.engine.families.sana import Sana, SanaSprint
from worker.engine.families.sd3 import StableDiffusion3
from worker.engine.families.stable_diffusion import (
    LatentConsistency,
    StableDiffusion,
    StableDiffusionXL,
)
from worker.engine.families.z_image import ZImage

ALL: tuple[type[Family], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    LatentConsistency,
    StableDiffusion3,
    Flux,
    Flux2,
    Flux2Klein,
    PixArtSigma,
    Sana,
    SanaSprint,
    QwenImage,
    ZImage,
    Lumina2,
)


def family_of(pipeline: Any) -> type[Family] | None:
    """The family that the pipeline belongs to; None for one that runs through its own call.

    Raises:
        ModelUnavailable: it claims to be of a family and differs from it.
    """
    family = next((family for family in ALL if family.matches(pipeline)), None)
    if family is None:
        return None
    fault = family.fault(pipeline)
    if fault is not None:
        name = type(pipeline).__name__
        raise ModelUnavailable(f"This {name} differs from the family {family.name}: {fault}.")
    return family


def family_named(pipeline_class: str) -> type[Family] | None:
    """The family whose checkpoints name this class in their `model_index.json`."""
    return next(
        (family for family in ALL if family.name == family_of_pipeline(pipeline_class)), None
    )
