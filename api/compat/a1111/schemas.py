"""What clients of the web UI's API send and get."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from api.core.bodies import RequestModel
from api.core.serialization import AnswerModel
from api.jobs.submission import MAX_SEED, MAX_SIDE, MAX_STEPS

Count = Annotated[int, Field(ge=1, le=64)]
Side = Annotated[int, Field(ge=64, le=MAX_SIDE)]
ResizedSide = Annotated[int, Field(ge=0, le=MAX_SIDE)]
Settings = dict[str, Any]
LONGEST_NAME = 256
Name = Annotated[str, Field(max_length=LONGEST_NAME)]


class Txt2Img(RequestModel):
    """The web UI's request for images. Fields that Darkroom does not have are refused by name
    unless they have their default or no effect."""

    model_config = ConfigDict(extra="allow", strict=False)

    prompt: str | None = ""
    """What the images show, with weights as `(word:1.2)` and LoRAs as `<lora:name:0.8>`."""
    negative_prompt: str | None = ""
    """What they should not show, with weights."""
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] | None = -1
    """Seed of the first image; image i has seed + i. -1: drawn."""
    sampler_name: Name | None = None
    """A name from `GET /sdapi/v1/samplers`. Default: the model's."""
    sampler_index: Name | None = None
    """The same, as older clients name it."""
    scheduler: Name | None = None
    """`Automatic`, `Uniform` or `Karras`."""
    batch_size: Count | None = 1
    """Times `n_iter`: how many images."""
    n_iter: Count | None = 1
    """Times `batch_size`: how many images."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Denoising steps. Default: the model's."""
    cfg_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    """Guidance scale. Default: the model's."""
    width: Side | None = None
    """Pixels. Default: the model's, or with an initial image what keeps its shape."""
    height: Side | None = None
    """Pixels; as `width`."""
    denoising_strength: Annotated[float, Field(ge=0, le=1)] | None = None
    """How far to leave the initial image, or with `enable_hr` the upscaled one."""
    enable_hr: bool | None = False
    """Whether the image is made larger in a second pass."""
    hr_scale: Annotated[float, Field(ge=0, le=4)] | None = 2.0
    """With `enable_hr`: how many times."""
    hr_resize_x: ResizedSide | None = 0
    """With `enable_hr`: width of the final images, instead of `hr_scale`."""
    hr_resize_y: ResizedSide | None = 0
    """With `enable_hr`: height of the final images, in the shape of the first ones."""
    hr_upscaler: Name | None = None
    """With `enable_hr`: `Latent` or `Lanczos`."""
    hr_second_pass_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] | None = 0
    """With `enable_hr`: steps that run; 0 means as many as in the first pass."""
    override_settings: Settings | None = None
    """`sd_model_checkpoint` and `samples_format`; others are refused unless they are off."""
    alwayson_scripts: dict[str, Any] | None = None
    """ControlNet's units, IP-Adapters among them; other scripts are refused unless they are off."""
    disable_extra_networks: bool | None = False
    """Whether `<lora:…>` is left out of the prompt and loads nothing."""
    send_images: bool | None = True
    """Whether the answer holds the images."""

    @property
    def repeats_images(self) -> bool:
        """Whether `parameters` has the images that were sent."""
        return False


class Img2Img(Txt2Img):
    """The web UI's request to change an image."""

    init_images: Annotated[list[str], Field(max_length=16)] | None = None
    """One image: base64, a `data:` or https URL, or the ID of one of your images or uploads."""
    resize_mode: Annotated[int, Field(ge=0, le=2)] | None = 0
    """0: stretch; 1: crop; 2: show all of it, its edges continued."""
    mask: str | None = None
    """Given as the image, of its size: white is repainted, black stays."""
    mask_blur: Annotated[int, Field(ge=0, le=64)] | None = 4
    """With `mask`: pixels."""
    inpainting_fill: Annotated[int, Field(ge=0, le=1)] | None = 0
    """With `mask`: what it starts from. 0: the colors around it; 1: the initial image."""
    inpaint_full_res: bool | None = True
    """With `mask`: make only the region around it, at the whole size, and put it back."""
    inpaint_full_res_padding: Annotated[int, Field(ge=0, le=1024)] | None = 0
    """With `inpaint_full_res`: pixels around the mask."""
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] | None = 0
    """With `mask`, in base64: 1 repaints what is black."""
    include_init_images: bool | None = False
    """Whether `parameters` repeats the initial image and the mask."""

    @property
    def repeats_images(self) -> bool:
        """Whether `parameters` has the images that were sent."""
        return self.include_init_images is True


class OptionsChange(RequestModel):
    """Options to set, by name. `sd_model_checkpoint` can be; any other has to be as it is."""

    model_config = ConfigDict(extra="allow", strict=False)

    sd_model_checkpoint: Name | None = None
    """The model of later requests with this API key that name none."""


class PngInfoRequest(RequestModel):
    """An image whose settings are wanted."""

    image: str
    """base64 or a `data:` URL."""


class GeneratedImages(AnswerModel):
    """The web UI's answer."""

    images: list[str]
    """Files in base64, in the order of their seeds."""
    parameters: dict[str, Any]
    """The request."""
    info: str
    """JSON: `all_seeds`, `infotexts`, …; `darkroom` holds the job and its images' IDs."""


class Options(AnswerModel):
    """The options that there are."""

    sd_model_checkpoint: str
    """The model of this API key's requests that name none."""
    samples_format: str = "png"
    """Always `png`; a request can override it."""
    sd_vae: str = "Automatic"
    """Always `Automatic`."""
    CLIP_stop_at_last_layers: int = 1
    """Always 1."""


class SdModel(AnswerModel):
    """A model in the web UI's shape."""

    title: str
    """Its name."""
    model_name: str
    """Its name."""
    hash: str | None = None
    """Null: not known."""
    sha256: str | None = None
    """Null: not known."""
    filename: str
    """Its name: nothing is said of files."""
    config: str | None = None
    """Null."""


class SamplerItem(AnswerModel):
    """A sampler in the web UI's shape."""

    name: str
    """Pass it as `sampler_name`."""
    aliases: list[str]
    """Other names of it."""
    options: dict[str, str]
    """`scheduler`: what `Automatic` means."""


class ScheduleType(AnswerModel):
    """A schedule type in the web UI's shape."""

    name: str
    """Pass it as `scheduler`."""
    label: str
    """The same for people; can be passed, too."""
    aliases: list[str] | None = None
    """Null."""
    default_rho: float = -1.0
    """Always -1."""
    need_inner_model: bool = False
    """Always false."""


class LoraItem(AnswerModel):
    """A LoRA in the web UI's shape."""

    name: str
    """Write `<lora:name:1>` in a prompt."""
    alias: str
    """The same."""
    path: str
    """The same: nothing is said of files."""
    metadata: dict[str, Any]
    """`family` and `trigger_words`."""


class ProgressState(AnswerModel):
    """The progress of the web UI's job."""

    skipped: bool = False
    """Always false."""
    interrupted: bool
    """Whether it is to stop."""
    stopping_generation: bool = False
    """Always false."""
    job: str
    """The job, `job_…`, or empty."""
    job_count: int
    """This API key's unfinished jobs from this API."""
    job_timestamp: str
    """When it was submitted, YYYYMMDDhhmmss in UTC."""
    job_no: int = 0
    """Always 0."""
    sampling_step: int
    """Denoising steps done of the image in work."""
    sampling_steps: int
    """Denoising steps that this image takes."""


class ProgressAnswer(AnswerModel):
    """How far the newest running job of this API key is."""

    progress: float
    """0 to 1; 0 where none runs."""
    eta_relative: float
    """Seconds that are left, as far as known."""
    state: ProgressState
    """The job."""
    current_image: str | None
    """The newest preview, a small WebP file in base64, as far as there is one."""
    textinfo: str | None = None
    """Null."""


class PngInfo(AnswerModel):
    """The settings in an image file."""

    info: str
    """The settings as text; empty where it says nothing."""
    items: dict[str, str]
    """Its texts by name."""
    parameters: dict[str, str]
    """The settings by name."""
