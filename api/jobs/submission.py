"""What clients send to submit a job."""

import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from api.core.bodies import EXAMPLE_IMAGE, JSON_INTEGER, RequestModel
from api.core.errors import RuleBroken
from api.jobs.options import IMAGE_LISTS, MAX_IMAGE_TEXT, JobOptions
from api.webhooks.schemas import JobWebhook
from shared.core.prompt_weights import MalformedWeights, parse_weights
from shared.images.models import MAX_PROMPT
from shared.jobs.models import REPRODUCES

MAX_SEED = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""
MAX_STEPS = 500
MAX_SIDE = 4096
"""Pixels; the largest that images have here, whatever a model can make."""
_ALLOWED_CONTROLS = frozenset("\t\n\r")
_WEEK = 7 * 24 * 3600
_OF_MASKS = ("masked_content", "mask_blur", "padding_mask_crop", "preserve_unmasked")
_DEFAULT_SIZE = (
    "default of the model, or, with an initial image, what keeps its shape: to match the other "
    "side if that is given, else with about as many pixels as the model's default."
)


def _has_controls(text: str) -> bool:
    return any(
        unicodedata.category(character) in ("Cc", "Cs") and character not in _ALLOWED_CONTROLS
        for character in text
    )


def _clean_text(text: str) -> str:
    if not text.isprintable() and _has_controls(text):
        raise RuleBroken("control_characters", "Control characters are not allowed.")
    text = unicodedata.normalize("NFC", text)
    if len(text) > MAX_PROMPT:
        raise RuleBroken("too_long", f"At most {MAX_PROMPT} characters are allowed.")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise RuleBroken("empty", "The prompt is empty.")
    return text


def _printable_or_space(text: str) -> str:
    if not text.isprintable() and _has_controls(text):
        raise RuleBroken("control_characters", "Control characters are not allowed.")
    return text


def _not_reserved(key: str) -> str:
    if key == REPRODUCES:
        raise RuleBroken("reserved", "This metadata key is reserved by Darkroom.")
    return key


PromptText = Annotated[str, AfterValidator(_clean_text), AfterValidator(_not_blank)]
NegativeText = Annotated[str, AfterValidator(_clean_text)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), JSON_INTEGER]
Side = Annotated[int, Field(ge=64, le=MAX_SIDE, multiple_of=8), JSON_INTEGER]
MetadataKey = Annotated[
    str,
    Field(min_length=1, max_length=64),
    AfterValidator(_printable_or_space),
    AfterValidator(_not_reserved),
]
MetadataValue = Annotated[str, Field(max_length=512), AfterValidator(_printable_or_space)]
SessionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Seconds = Annotated[float, Field(gt=0, le=_WEEK)]
ResizeMode = Literal["fill", "fit", "stretch"]


class LoraSubmission(RequestModel):
    """A LoRA of the catalogue, and how strongly it acts."""

    name: Annotated[str, Field(max_length=64, description="A name from GET /v1/loras.")]
    scale: Annotated[float, Field(ge=-4, le=4)] = Field(
        default=1.0, description="-4 to 4; 1 is as it was trained, 0 is nothing."
    )


class _SubmissionFields(RequestModel):
    """A submission but for its options, which stand behind these fields."""

    prompt: PromptText = Field(description=f"1 to {MAX_PROMPT} characters; kept in NFC.")
    negative_prompt: NegativeText | None = Field(
        default=None, description="What the image should not show."
    )
    num_images: Annotated[int, Field(ge=1, le=64), JSON_INTEGER] | None = Field(
        default=None, description="1 to the server's limit (16 unless configured); default 1."
    )
    seed: Seed | None = Field(
        default=None, description="Seed of the first image; image i has seed + i. Default: drawn."
    )
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="One seed for each image, instead of `seed`."
    )
    width: Side | None = Field(default=None, description=f"Pixels; {_DEFAULT_SIZE}")
    height: Side | None = Field(default=None, description=f"Pixels; {_DEFAULT_SIZE}")
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS), JSON_INTEGER] | None = Field(
        default=None, description="Denoising steps; default and limit of the model."
    )
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = Field(
        default=None, description="Classifier-free guidance; default of the model."
    )
    true_cfg_scale: Annotated[float, Field(ge=1, le=50)] | None = Field(
        default=None,
        description="FLUX and Qwen-Image: guidance by a second call in each step, away from the "
        "negative prompt (or from an empty one). 1 turns it off. Other models refuse it.",
    )
    scheduler: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="A name from GET /v1/models; default of the model."
    )
    model: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="A name from GET /v1/models; default: the first."
    )
    loras: Annotated[list[LoraSubmission], Field(max_length=4)] = Field(
        default_factory=list,
        description="Up to 4 LoRAs, in the order in which they act; their order is part of the "
        "bytes.",
    )
    session_id: SessionId = Field(
        default="default", description="Your folder for this image; made on first use."
    )
    init_image: Annotated[str, Field(max_length=MAX_IMAGE_TEXT)] | None = Field(
        default=None,
        description="Makes it img2img: an upload id, an image id, a data: or an https URL.",
    )
    mask_image: Annotated[str, Field(max_length=MAX_IMAGE_TEXT)] | None = Field(
        default=None,
        description="Makes it inpainting: an image of the initial image's size, given as that is. "
        "White is repainted, black stays.",
    )
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="With an initial image: how far to leave it. Default 0.8; 1.0 for inpainting.",
    )
    resize_mode: ResizeMode | None = Field(
        default=None,
        description="Where the initial image, or that of a ControlNet, has another shape than the "
        "job. fill: crop what is too much (default); fit: show all of it, its edges continued; "
        "stretch.",
    )
    output_format: Literal["png", "webp", "jpeg"] = "png"
    """File format of the images. PNG is lossless, and so is WebP without `output_quality`."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = Field(
        default_factory=dict, description="16 keys of 64 characters, values of 512."
    )
    previews: bool = Field(default=False, description="Send small previews as events.")
    start_within: Seconds | None = Field(
        default=None, description="Seconds; a job that has not started by then expires."
    )
    finish_within: Seconds | None = Field(
        default=None, description="Seconds; a job that has not finished by then expires."
    )
    webhook: JobWebhook | None = Field(
        default=None, description="Also notify this URL, in addition to the registered endpoints."
    )


class JobSubmission(JobOptions, _SubmissionFields):
    """A request for 1…n images. Everything but the prompt has a default."""

    @property
    def has_images(self) -> bool:
        """Whether it brings or names an image."""
        return self.init_image is not None or any(getattr(self, name) for name in IMAGE_LISTS)

    @property
    def masks(self) -> list[str]:
        """The fields that say what to repaint."""
        given = {
            "mask_image": self.mask_image is not None,
            "mask_from_alpha": self.mask_from_alpha,
            "expand": self.expand is not None,
        }
        return [name for name, is_given in given.items() if is_given]

    @model_validator(mode="after")
    def _mask_makes_sense(self) -> Self:
        masks = self.masks
        if self.expand is not None and masks[0] != "expand":
            message = f"Give either {masks[0]} or expand, not both."
            raise RuleBroken("conflicting_masks", message, "/expand")
        if masks and self.init_image is None:
            message = f"{masks[0]} needs an init_image."
            raise RuleBroken("mask_without_init_image", message, f"/{masks[0]}")
        if not masks:
            options = self.stored_options()
            for name in _OF_MASKS:
                if name in options:
                    message = f"{name} needs a mask_image, mask_from_alpha or expand."
                    raise RuleBroken("mask_option_without_mask", message, f"/{name}")
        if masks and self.hires is not None:
            message = f"hires does not go together with {masks[0]}."
            raise RuleBroken("hires_with_mask", message, "/hires")
        if self.expand is not None and not self.expand.across + self.expand.down:
            raise RuleBroken("empty_expand", "expand is zero on every side.", "/expand")
        return self

    @model_validator(mode="after")
    def _controls_make_sense(self) -> Self:
        for index, control in enumerate(self.controls):
            here = f"/controls/{index}"
            if control.start >= control.end:
                message = "end must be greater than start."
                raise RuleBroken("empty_control", message, f"{here}/end")
            if control.low is None and control.high is None:
                continue
            if control.preprocess != "canny":
                name = "low" if control.low is not None else "high"
                message = "Thresholds go together with preprocess: canny."
                raise RuleBroken("threshold_without_canny", message, f"{here}/{name}")
            if (control.low or 0) > (control.high or 0):
                raise RuleBroken("conflicting_thresholds", "low is above high.", f"{here}/low")
        return self

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.seed is not None and self.seeds is not None:
            raise RuleBroken("conflicting_seeds", "Give either seed or seeds, not both.", "/seeds")
        if self.strength is not None and self.init_image is None:
            raise RuleBroken(
                "strength_without_init_image", "strength needs an init_image.", "/strength"
            )
        if self.resize_mode is not None and self.init_image is None and not self.controls:
            message = "resize_mode needs an init_image or controls."
            raise RuleBroken("resize_mode_without_init_image", message, "/resize_mode")
        if self.seeds is not None and self.num_images not in (None, len(self.seeds)):
            raise RuleBroken("seeds_length", "seeds must have num_images entries.", "/seeds")
        if self.output_quality is not None and self.output_format == "png":
            message = "output_quality applies to jpeg and webp only; PNG is lossless."
            raise RuleBroken("quality_of_png", message, "/output_quality")
        if self.prompt_syntax == "weighted":
            self._check_weights("prompt", self.prompt)
            self._check_weights("negative_prompt", self.negative_prompt or "")
        return self

    def _check_weights(self, field: str, text: str) -> None:
        try:
            parts = parse_weights(text)
        except MalformedWeights as error:
            raise RuleBroken(error.reason, error.message, f"/{field}") from None
        if len(parts) > 1 and not self.long_prompt:
            message = "BREAK starts another 75-token chunk and requires long_prompt: true."
            raise RuleBroken("break_without_long_prompt", message, f"/{field}")


SUBMISSION_EXAMPLES: dict[str, Any] = {
    "text to image": {"prompt": "a red circle on a white background", "seed": 7},
    "four variations": {
        "prompt": "a blue square above a yellow triangle",
        "num_images": 4,
        "steps": 25,
        "session_id": "shapes",
    },
    "image to image": {
        "prompt": "the same scene at night",
        "init_image": EXAMPLE_IMAGE,
        "strength": 0.6,
    },
    "outpainting": {
        "prompt": "a wide beach",
        "init_image": EXAMPLE_IMAGE,
        "expand": {"left": 64, "right": 64},
    },
}
