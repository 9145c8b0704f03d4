"""The toys of the flow-matching families: how they are asked, and how diffusers is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.core.families import FAMILIES
from worker.engine.interface import ImageRequest


def _nothing(_: ImageRequest) -> dict[str, Any]:
    return {}


def _as_given(image_request: ImageRequest) -> dict[str, Any]:
    """The text and the size as they are; no negative prompt is an empty one."""
    return {
        "clean_caption": False,
        "use_resolution_binning": False,
        "negative_prompt": image_request.negative_prompt or "",
    }


def _sprint(image_request: ImageRequest) -> dict[str, Any]:
    """Its middle angle is for two steps alone."""
    middle = {} if image_request.steps == 2 else {"intermediate_timesteps": None}
    return {"clean_caption": False, "use_resolution_binning": False, **middle}


def _qwen(image_request: ImageRequest) -> dict[str, Any]:
    """Its guidance scale has another name; no negative prompt is a blank."""
    negative = image_request.negative_prompt
    return {
        "true_cfg_scale": image_request.guidance_scale,
        "guidance_scale": None,
        "negative_prompt": " " if negative is None else negative,
    }


@dataclass(frozen=True)
class Toy:
    """A toy checkpoint and its family's ways."""

    name: str
    family: str
    guidance: float = 5.0
    unguided: float = 1.0
    """A scale without guidance."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """In `models.toml`."""
    request: Mapping[str, Any] = field(default_factory=dict)
    negative: bool = True
    """Whether it takes a negative prompt."""
    arguments: Callable[[ImageRequest], dict[str, Any]] = _nothing
    """What diffusers' call takes besides."""

    @property
    def schedulers(self) -> tuple[str, ...]:
        """On offer."""
        return FAMILIES[self.family].schedulers

    @property
    def from_images(self) -> bool:
        """Whether it makes images from images."""
        return FAMILIES[self.family].image_to_image

    @property
    def crowd(self) -> dict[str, Any]:
        """What random requests of this family are like."""
        return {"from_images": self.from_images}


_ALL = (
    Toy("sd3", "sd3"),
    Toy("sd35", "sd3"),
    Toy(
        "flux",
        "flux",
        guidance=3.5,
        spec={"true_guidance_scale": 4.0},
        arguments=lambda _: {"true_cfg_scale": 4.0},
    ),
    Toy(
        "schnell",
        "flux",
        guidance=0.0,
        negative=False,
        arguments=lambda _: {"max_sequence_length": 256},
    ),
    Toy("pixart", "pixart", arguments=_as_given),
    Toy("sana", "sana", arguments=_as_given),
    Toy("sprint", "sana-sprint", guidance=4.5, negative=False, arguments=_sprint),
    Toy("flux2", "flux2", guidance=4.0, negative=False),
    Toy("klein", "flux2-klein", guidance=4.0, negative=False),
    Toy("qwen", "qwen-image", guidance=4.0, arguments=_qwen),
    Toy("zimage", "z-image", guidance=4.0, unguided=0.0),
    Toy("lumina2", "lumina2", guidance=4.0),
)

TOYS = {toy.name: toy for toy in _ALL}

DIFFUSION_TOYS = (
    Toy("sd15", "sd", guidance=7.5),
    Toy("sd21", "sd", guidance=7.5),
    Toy("sd21v", "sd", guidance=7.5),
    Toy("sdxl", "sdxl", guidance=7.5),
    Toy("turbo", "sdxl", guidance=0.0),
    Toy("lcm", "lcm", guidance=8.0),
)
"""Those of Stable Diffusion, which have tests of their own."""
