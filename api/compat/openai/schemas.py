"""What clients of OpenAI's image API send and get."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from api.core.bodies import JSON_INTEGER, RequestModel
from api.core.errors import RuleBroken
from api.core.serialization import AnswerModel
from api.jobs.submission import JobSubmission

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]

STEPS_NAMES = ("steps", "num_inference_steps")
GUIDANCE_NAMES = ("guidance_scale", "cfg_scale")
_ALSO = {"num_inference_steps", "cfg_scale"}
_OURS = {"num_images": "n", "width": "size", "height": "size"}
"""Fields of a job for which OpenAI has another."""
EXTENSIONS = (frozenset(JobSubmission.model_fields) | _ALSO) - {"prompt", "model", *_OURS}
"""What `extra_body` may add: every other field of a job, and two names of other servers."""
IGNORED = ("moderation", "style", "complexity")


class ImageGeneration(RequestModel):
    """OpenAI's request for images. It may have any field of a job, too: `seed`, `negative_prompt`,
    `steps` (or `num_inference_steps`), `guidance_scale` (or `cfg_scale`), `scheduler`,
    `session_id`, `metadata`, …"""

    model_config = ConfigDict(extra="allow")

    prompt: str
    """What the images show."""
    model: str | None = None
    """A model's name or alias. `dall-e-*` and `gpt-image-*` mean the first model unless claimed by
    another."""
    n: Annotated[int, Field(ge=1, le=64), JSON_INTEGER] | None = None
    """How many images; default 1."""
    size: Annotated[str, Field(pattern=r"^(auto|[0-9]{2,4}x[0-9]{2,4})$")] | None = None
    """`auto`, or WIDTHxHEIGHT in pixels. Default: the model's."""
    quality: Quality | None = None
    """How many steps the model takes, unless `steps` says so."""
    response_format: Literal["url", "b64_json"] | None = None
    """Default: `b64_json`. A `url` is good for an hour and needs no key."""
    output_format: Literal["png", "webp", "jpeg"] | None = None
    """Default: `png`."""
    background: Literal["opaque", "auto"] | None = None
    """Images have no transparency."""
    stream: bool | None = None
    """Server-sent events instead of one answer."""
    partial_images: Annotated[int, Field(ge=0, le=3), JSON_INTEGER] | None = None
    """With `stream`: how many previews of each image, as small WebP files. Default 0."""
    user: Annotated[str, Field(max_length=512)] | None = None
    """Kept in the job's metadata."""
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    """Kept in the job's metadata."""
    output_compression: Annotated[int, Field(ge=0, le=100), JSON_INTEGER] | None = None
    """The `output_quality` of `webp` and `jpeg`. Ignored for `png`."""
    moderation: str | None = None
    """Ignored."""
    style: str | None = None
    """Ignored."""
    complexity: str | None = None
    """Ignored."""

    @model_validator(mode="after")
    def _extensions_are_known(self) -> Self:
        for name, value in self.extensions.items():
            if name not in EXTENSIONS:
                twin = f" Use {_OURS[name]}." if name in _OURS else ""
                code = "unsupported_parameter"
                raise RuleBroken(code, f"{name[:64]} is not supported.{twin}", f"/{name[:64]}")
            if name == "metadata" and not isinstance(value, dict):
                raise RuleBroken("dict_type", "metadata must be an object.", "/metadata")
        for names in (STEPS_NAMES, GUIDANCE_NAMES):
            if all(name in self.extensions for name in names):
                raise RuleBroken("conflict", f"Give one of {' and '.join(names)}.", f"/{names[1]}")
        return self

    @property
    def extensions(self) -> dict[str, Any]:
        """What was given in addition to OpenAI's fields. OpenAI's null is what is not given."""
        extra = self.model_extra or {}
        return {name: value for name, value in extra.items() if value is not None}

    @property
    def ignored(self) -> list[str]:
        """The given fields that mean nothing here."""
        names = [*IGNORED, *([] if self.is_compressed else ["output_compression"])]
        return [name for name in names if getattr(self, name) is not None]

    @property
    def is_compressed(self) -> bool:
        """Whether the format has a quality."""
        return self.output_format in ("webp", "jpeg")


class ImageReference(RequestModel):
    """An image by its URL."""

    image_url: str
    """A `data:` or https URL, or the ID of one of your images or uploads."""


class ImageEdit(ImageGeneration):
    """OpenAI's request to change an image, or a part of it. Fields as for a generation."""

    image: str | list[str] | None = None
    """A `data:` or https URL, or the ID of one of your images or uploads; in a form, the file.
    Up to 2 further ones are `references`, for models with an IP-Adapter."""
    images: list[ImageReference] | None = None
    """The same, as OpenAI's JSON names it."""
    mask: str | ImageReference | None = None
    """An image of the same size, given in the same ways: what is transparent in it is repainted."""
    input_fidelity: Literal["high", "low"] | None = None
    """`high` is a strength of 0.45, `low` of 0.75, unless `strength` says so."""

    @model_validator(mode="after")
    def _has_an_image(self) -> Self:
        if not self.sources:
            raise RuleBroken("image_count", "Give an image.", "/image")
        return self

    @property
    def mask_source(self) -> str | None:
        """The mask."""
        return self.mask.image_url if isinstance(self.mask, ImageReference) else self.mask

    @property
    def sources(self) -> list[str]:
        """The image to start from, and those to look at."""
        given = [self.image] if isinstance(self.image, str) else self.image or []
        ours = self.extensions.get("init_image")
        return [*([ours] if ours else []), *given, *(one.image_url for one in self.images or [])]


class ImageDatum(AnswerModel):
    """One image. `b64_json` or `url`, whichever was asked for."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    b64_json: str | None = None
    """The file, in base64. Absent unless asked for."""
    url: str | None = None
    """Reads the file without a key, for an hour. Absent unless asked for."""
    id: str
    """The image, `img_…`."""
    seed: int
    """Makes the same image again, with the same settings."""
    job: str
    """Its job, `job_…`."""


class TokenDetails(AnswerModel):
    """OpenAI's details of tokens."""

    image_tokens: int = 0
    """Always 0."""
    text_tokens: int = 0
    """Always 0."""


class TokenUsage(AnswerModel):
    """OpenAI's count of tokens. Nothing here is counted in tokens."""

    input_tokens: int = 0
    """Always 0."""
    output_tokens: int = 0
    """Always 0."""
    total_tokens: int = 0
    """Always 0."""
    input_tokens_details: TokenDetails = TokenDetails()
    """Always zeros."""


class Images(AnswerModel):
    """OpenAI's answer, with the job and each image's ID and seed."""

    created: int
    """When the job was submitted, in seconds since 1970."""
    data: list[ImageDatum]
    """The images in the order of their seeds; none in a 202."""
    job: str
    """The job, `job_…`."""
    model: str
    """Name of the model that was used."""
    background: Literal["opaque"] = "opaque"
    """Images have no transparency."""
    output_format: str
    """File format of the images."""
    quality: str
    """As asked for."""
    size: str
    """WIDTHxHEIGHT in pixels."""
    usage: TokenUsage = TokenUsage()
    """For clients that need one."""


class OpenAIModel(AnswerModel):
    """A model in OpenAI's shape."""

    id: str
    """Its name."""
    object: Literal["model"] = "model"
    """Always `model`."""
    created: int = 0
    """Always 0: not known."""
    owned_by: Literal["darkroom"] = "darkroom"
    """Always `darkroom`."""
    aliases: list[str]
    """Other names that it goes by here."""


class OpenAIModels(AnswerModel):
    """All models in OpenAI's shape."""

    object: Literal["list"] = "list"
    """Always `list`."""
    data: list[OpenAIModel]
    """The first one is the default."""
