"""Settings that steer an image and that most jobs lack: declared here once.

They stand flat among a job's other fields in submissions, lines and columns of batches, answers and
receipts, and together in the column `jobs.options`, which has those that differ from their default.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from api.core.bodies import JSON_INTEGER, RequestModel
from shared.core.prompt_weights import PromptSyntax
from shared.jobs.models import DEFAULT_MASK_BLUR

MAX_IMAGE_TEXT = 15_000_000
"""Characters; the limit in bytes is checked when the data: URL is decoded."""
MAX_UPSCALE = 4
DEFAULT_HIRES_STRENGTH = 0.7
HiresScale = Annotated[float, Field(gt=1, le=MAX_UPSCALE)]
HiresStrength = Annotated[float, Field(gt=0, le=1)]
HiresSteps = Annotated[int, Field(ge=1, le=500), JSON_INTEGER]
Upscaler = Literal["lanczos", "latent"]


class Hires(RequestModel):
    """A second pass: the image is upscaled and denoised again."""

    scale: HiresScale = Field(
        default=2.0, description="Above 1 to 4; sides are rounded to the model's multiple."
    )
    strength: HiresStrength = Field(
        default=DEFAULT_HIRES_STRENGTH,
        description="How far the second pass may leave the upscaled image. With `latent`, "
        "below about 0.5 it stays blurred; with `lanczos`, 0.3 to 0.5 adds detail.",
    )
    steps: HiresSteps | None = Field(
        default=None, description="Of the second pass's whole schedule; default: the job's."
    )
    upscaler: Upscaler = Field(
        default="latent",
        description="latent: interpolate the latents; lanczos: decode, and resample the pixels.",
    )


Border = Annotated[int, Field(ge=0, le=4096), JSON_INTEGER]


class Expand(RequestModel):
    """How much is painted around the initial image: pixels of the finished image."""

    left: Border = Field(default=0, description="Beyond the left edge.")
    right: Border = Field(default=0, description="Beyond the right edge.")
    top: Border = Field(default=0, description="Beyond the top edge.")
    bottom: Border = Field(default=0, description="Beyond the bottom edge.")

    @property
    def across(self) -> int:
        """Left and right."""
        return self.left + self.right

    @property
    def down(self) -> int:
        """Top and bottom."""
        return self.top + self.bottom


class Reference(RequestModel):
    """An image that the model looks at alongside the prompt."""

    image: Annotated[str, Field(max_length=MAX_IMAGE_TEXT)] = Field(
        description="An upload id, an image id, a data: or an https URL."
    )
    scale: Annotated[float, Field(ge=0, le=2)] = Field(
        default=0.6, description="How much it counts, 0 to 2: at 1 as much as the prompt."
    )


Threshold = Annotated[int, Field(ge=0, le=255), JSON_INTEGER]
ControlName = Annotated[str, Field(max_length=64)]
ControlScale = Annotated[float, Field(ge=0, le=2)]
ControlStart = Annotated[float, Field(ge=0, lt=1)]
ControlEnd = Annotated[float, Field(gt=0, le=1)]
Preprocess = Literal["none", "canny"]


class Control(RequestModel):
    """A ControlNet, and the image that it sees."""

    name: ControlName = Field(description="One of the model's `controlnets` in GET /v1/models.")
    image: Annotated[str, Field(max_length=MAX_IMAGE_TEXT)] = Field(
        description="An upload id, an image id, a data: or an https URL. It is brought to the "
        "job's size as `resize_mode` says: cropped unless that is set."
    )
    scale: ControlScale = Field(default=1.0, description="How strongly it acts, 0 to 2.")
    start: ControlStart = Field(default=0.0, description="Where in the steps it begins, 0 to 1.")
    end: ControlEnd = Field(default=1.0, description="Where in the steps it ends, 0 to 1.")
    preprocess: Preprocess = Field(
        default="none",
        description="canny: the net sees the image's edges; none: the image, as a map of edges, "
        "depth or a pose that you have made.",
    )
    low: Threshold | None = Field(
        default=None, description="canny: weaker edges than this are left out. Default 100."
    )
    high: Threshold | None = Field(
        default=None,
        description="canny: edges as strong as this are drawn, and weaker ones that touch them. "
        "Default 200.",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_thresholds(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or fields.get("preprocess") != "canny":
            return fields
        given = {name: value for name, value in fields.items() if value is not None}
        return {"low": 100, "high": 200} | given


class JobOptions(BaseModel):
    """What submissions and answers have in common. Every field has a default."""

    prompt_syntax: PromptSyntax = Field(
        default="plain",
        description="weighted: `(word:1.3)`, `(word)`, `[word]` and `BREAK` in both prompts mean "
        "what they mean in AUTOMATIC1111's web UI; `\\(` is a parenthesis. plain: they are text.",
    )
    long_prompt: bool = Field(
        default=False,
        description="SD and SDXL: read a prompt to its end, 75 tokens at a time; otherwise what is "
        "behind the first 75 is cut off, with a warning.",
    )

    hires: Hires | None = Field(
        default=None,
        description="Makes each image larger in a second pass. `width` and `height` are those of "
        "the first; `images` have the final ones.",
    )
    controls: Annotated[list[Control], Field(max_length=2)] = Field(
        default_factory=list,
        description="Up to 2 ControlNets (SD, SDXL, SD3, FLUX), each with an image that the job "
        "follows: its edges, its depth, a pose. They act in a second pass, too.",
    )
    references: Annotated[list[Reference], Field(max_length=2)] = Field(
        default_factory=list,
        description="Up to 2 images whose content and style the job takes up, in the order in "
        "which they act; for models with an IP-Adapter.",
    )
    mask_from_alpha: bool = Field(
        default=False,
        description="Repaint the initial image where it is transparent; with a `mask_image`, where "
        "that is.",
    )
    expand: Expand | None = Field(
        default=None,
        description="Outpainting, instead of a mask: pixels to paint around the initial "
        "image. Without width and height the finished image has its size and these.",
    )
    masked_content: Literal["original", "fill"] = Field(
        default="original",
        description="Start under the mask from the initial image, or the colors around "
        "the mask. At strength 1 most models forget either.",
    )
    mask_blur: Annotated[int, Field(ge=0, le=64), JSON_INTEGER] = Field(
        default=DEFAULT_MASK_BLUR,
        description="Width of the blend at the mask's edge, in pixels.",
    )
    padding_mask_crop: Annotated[int, Field(ge=0, le=1024), JSON_INTEGER] | None = Field(
        default=None,
        description="Make only the region around the mask, at the job's whole size, with this many "
        "pixels of what surrounds it, and put it back: more detail for a small mask.",
    )
    preserve_unmasked: bool = Field(
        default=True,
        description="Where the blurred mask is black every pixel stays as it was. false: as "
        "diffusers leaves them, through the VAE.",
    )
    output_quality: Annotated[int, Field(ge=1, le=100), JSON_INTEGER] | None = Field(
        default=None,
        description="JPEG and WebP: 1 to 100, the smaller the file the lower. Default: JPEG has "
        "95, WebP is lossless. Below 90 JPEG halves the resolution of colors.",
    )

    def stored_options(self) -> dict[str, Any]:
        """The column `jobs.options`: JSON values by field."""
        given = self.model_fields_set & OPTIONS
        values = self.model_dump(mode="json", include=given) if given else {}
        return {
            name: value for name, value in values.items() if getattr(self, name) != _default(name)
        }


OPTIONS = frozenset(JobOptions.model_fields)
"""The names of the fields."""

IMAGE_LISTS = ("controls", "references")
"""Those that are lists of objects with an `image` each. In the column `jobs.options` these have
`s3_key` and `sha256` as well, by which the image is kept."""


def options_of_receipt(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """What a receipt says of them; those of older releases say less."""
    return {name: receipt[name] for name in JobOptions.model_fields if name in receipt}


def _default(name: str) -> Any:
    return JobOptions.model_fields[name].get_default(call_default_factory=True)
