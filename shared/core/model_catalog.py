"""The model catalogue: what `models.toml` declares, read by the API (limits) and workers (load)."""

import json
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.core.families import FAMILIES, family_of_pipeline
from shared.core.settings import Provenance

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""``auto`` is float32 on a CPU; on a CUDA device float16 for Stable Diffusion and bfloat16 for the
large transformers (FLUX, Qwen-Image, …)."""

Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]
"""An image's side in pixels."""

Steps = Annotated[int, Field(ge=1, le=500)]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]

Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}$")]
"""Another name of a model, for clients that cannot be told ours."""


RENAMED_KEYS: Mapping[str, str] = {"rows": "max_batch_size"}
"""Keys of `[[model]]` in earlier versions, and what they are called now."""


class CatalogError(Exception):
    """`models.toml` is missing or says something that cannot be."""


class QualitySteps(BaseModel):
    """Denoising steps for OpenAI's `quality`; a share of `default_steps` for what is not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: Steps | None = None
    medium: Steps | None = None
    high: Steps | None = None
    xhigh: Steps | None = None
    max: Steps | None = None


class IpAdapterSpec(BaseModel):
    """A model's `ip_adapter`: what reads the reference images of its jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """A folder (relative to `models.toml`) or a hub id."""
    revision: str | None = None
    """Commit of the hub repository; required for hub ids."""
    file: Annotated[str, Field(pattern=r"\.safetensors$")]
    """The adapter's weights, in the folder or the repository."""
    image_encoder: str = "image_encoder"
    """Folder there with the CLIP vision model that the adapter was trained with."""


class ModelSpec(BaseModel):
    """One `[[model]]` table: where a checkpoint comes from, its defaults, its limits, its speed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    aliases: tuple[Alias, ...] = ()
    """Names that the OpenAI API takes for this model, such as ``dall-e-3``. The first model has
    OpenAI's names that no other claims."""
    source: str
    """A diffusers folder (relative to `models.toml`) or a hub id."""
    revision: str | None = None
    """Commit of the hub repository; required for hub ids, so that weights cannot change."""
    variant: str | None = None
    dtype: Dtype = "auto"
    scheduler: str = "dpmpp-2m"

    default_width: Side = 512
    default_height: Side = 512
    max_width: Side = 1024
    max_height: Side = 1024
    size_multiple: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 16
    """Pixels; sides that follow an initial image are multiples of it. 16 suits every family that
    diffusers has; clients may ask for any size that the model takes."""
    default_steps: Steps = 25
    max_steps: Steps = 150
    quality_steps: QualitySteps = QualitySteps()
    default_guidance_scale: Annotated[float, Field(ge=0, le=50)] = 7.5

    max_batch_size: Annotated[int, Field(ge=1, le=64)] | None = None
    """Images in the largest batch. None: measured by the warm-up."""
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of a CPU kernel; part of the bytes. None: measured by the warm-up."""
    warm_sizes: tuple[tuple[Side, Side], ...] = ()
    """(width, height) pairs generated before the worker is ready. Empty: the default size."""

    text_tokens: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Tokens of text that a flow-matching family reads; its own number if unset. Part of the bytes
    where the family does not mask the padding (FLUX)."""
    true_guidance_scale: Annotated[float, Field(gt=1, le=50)] | None = None
    """FLUX: how strongly a negative prompt steers, at the cost of a second call in each step.
    Unset, negative prompts are refused."""

    tick_budget: Annotated[float, Field(gt=0)] = 120.0
    """Seconds after which a tick or a decode counts as hung, and the process leaves."""

    text_encoder: Literal["device", "offload", "cpu"] = "device"
    """Where texts are encoded: on the device for good, there and back for each new text, or on the
    CPU (slow, and other bytes)."""
    offload: Literal["none", "model", "group"] = "none"
    """Keep weights in the host's memory: whole components while they are not used, or all layers
    but the one that runs. Slower, the same bytes."""
    quantization: (
        Literal["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8", "torchao-float8"] | None
    ) = None
    """Quantize network and text encoders (torchao: the network's weights) while they are loaded;
    part of the bytes."""
    gguf: str | None = None
    """A GGUF file (relative to `models.toml`) with the transformer's weights; the rest comes from
    `source`. Part of the bytes."""

    provenance: Provenance | None = None
    """How its images say that a model made them. None: as `DARKROOM_PROVENANCE` says."""

    ip_adapter: IpAdapterSpec | None = None
    """SD, SDXL and LCM: lets jobs have reference images. Loaded with the model."""
    lora_cache_bytes: Annotated[int, Field(ge=0)] = 2**30
    """Memory on the device for LoRAs that no image uses any more."""
    controlnet_cache_bytes: Annotated[int, Field(ge=0)] = 4 * 2**30
    """Memory on the device for ControlNets that no image uses any more."""

    channels_last: bool = False
    fuse_qkv: bool = False
    compile: Literal["off", "graphs", "inductor"] = "off"
    vae_slicing: bool = False
    vae_tiling: bool = False

    @model_validator(mode="after")
    def _is_consistent(self) -> "ModelSpec":
        if self.default_width > self.max_width or self.default_height > self.max_height:
            raise ValueError("the default size is larger than the largest size")
        if self.gguf is not None and self.quantization is not None:
            raise ValueError("gguf holds quantized weights: give it or quantization, not both")
        if self.ip_adapter is not None and self.fuse_qkv:
            raise ValueError("ip_adapter cannot be combined with fuse_qkv")
        if self.default_steps > self.max_steps:
            raise ValueError("default_steps is larger than max_steps")
        for quality, steps in self.quality_steps:
            if steps is not None and steps > self.max_steps:
                raise ValueError(f"quality_steps.{quality} is larger than max_steps")
        for width, height in self.sizes_to_warm:
            if width > self.max_width or height > self.max_height:
                raise ValueError(f"warm size {width}x{height} is larger than the largest size")
        return self

    @property
    def sizes_to_warm(self) -> tuple[tuple[int, int], ...]:
        """The (width, height) pairs that the warm-up generates."""
        return self.warm_sizes or ((self.default_width, self.default_height),)


class LoraSpec(BaseModel):
    """One `[[lora]]` table: a file of LoRA weights that jobs may name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    source: str
    """A safetensors file or a folder with one (relative to `models.toml`), or a hub id."""
    revision: str | None = None
    """Commit of the hub repository; required for hub ids."""
    file: str | None = None
    """Which file of the folder or the repository, if it has several."""
    family: str
    """The family of the models that it was trained for, such as `sd` or `flux`."""
    trigger_words: tuple[str, ...] = ()
    """What to write in a prompt for it; shown to clients and never inserted."""

    @model_validator(mode="after")
    def _is_known(self) -> "LoraSpec":
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}")
        return self


class ControlNetSpec(BaseModel):
    """One `[[controlnet]]` table: a network that shows a model an image, which jobs may name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    source: str
    """A folder in diffusers' format, or a safetensors file in one (relative to `models.toml`), or a
    hub id."""
    revision: str | None = None
    """Commit of the hub repository; required for hub ids."""
    file: Annotated[str, Field(pattern=r"^[^/]+\.safetensors$")] | None = None
    """Which weights of the folder or the repository, if there are several."""
    family: str
    """The family of the models that it was trained for: `sd`, `sdxl`, `sd3` or `flux`."""

    @model_validator(mode="after")
    def _is_known(self) -> "ControlNetSpec":
        families = [name for name, facts in FAMILIES.items() if facts.controlnets]
        if self.family not in families:
            raise ValueError(f"family must be one of {', '.join(families)}")
        return self

    def fits(self, family: str) -> bool:
        """Whether models of this family may take it; a simulated one takes all."""
        return family in (self.family, "simulated")


def lora_fits(trained_for: str, family: str) -> bool:
    """Whether models of a family take LoRAs of another; a simulated one takes all."""
    is_kin = (trained_for, family) == ("sd", "lcm")  # distilled from it
    return family in (trained_for, "simulated") or is_kin


class ModelCatalog(BaseModel):
    """Every declared model, LoRA and ControlNet, in the file's order; the first model is the
    default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    lora: tuple[LoraSpec, ...] = ()
    controlnet: tuple[ControlNetSpec, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "ModelCatalog":
        for kind, specs in (
            ("models", self.model),
            ("LoRAs", self.lora),
            ("ControlNets", self.controlnet),
        ):
            names = [spec.name for spec in specs]
            if len(names) != len(set(names)):
                raise ValueError(f"two {kind} have the same name")
        names = [name for spec in self.model for name in (spec.name, *spec.aliases)]
        if len(names) != len(set(names)):
            raise ValueError("model names and aliases must be unique")
        return self

    @property
    def default(self) -> ModelSpec:
        """The model of a job that names none."""
        return self.model[0]

    def get(self, name: str) -> ModelSpec | None:
        """The model of that name, or None."""
        return next((spec for spec in self.model if spec.name == name), None)

    def find(self, name: str) -> ModelSpec | None:
        """The model of that name or alias, or None."""
        return next((spec for spec in self.model if name in (spec.name, *spec.aliases)), None)

    def get_lora(self, name: str) -> LoraSpec | None:
        """The LoRA of that name, or None."""
        return next((spec for spec in self.lora if spec.name == name), None)

    def get_controlnet(self, name: str) -> ControlNetSpec | None:
        """The ControlNet of that name, or None."""
        return next((spec for spec in self.controlnet if spec.name == name), None)


@lru_cache
def load_catalog(path: Path) -> ModelCatalog:
    """Read `models.toml`.

    Folder sources come back absolute, so that no caller depends on the working directory.

    Raises:
        CatalogError: the file is missing, is not TOML, or declares something impossible; the
            message is one sentence fit for a person.
    """
    path = _installed(path)
    try:
        document = tomllib.loads(path.read_text("utf-8"))
        catalog = ModelCatalog.model_validate(document)
    except OSError as error:
        raise CatalogError(f"The model catalogue {path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"The model catalogue {path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        unknown = str(first["loc"][-1]) if first["type"] == "extra_forbidden" else ""
        new = RENAMED_KEYS.get(unknown)
        message = f"it is now called {new}" if new else first["msg"]
        raise CatalogError(f"The model catalogue {path}: {where}: {message}.") from error
    base = path.resolve().parent
    return ModelCatalog(
        model=tuple(_with_absolute_source(spec, base) for spec in catalog.model),
        lora=tuple(_with_absolute_source(spec, base) for spec in catalog.lora),
        controlnet=tuple(_with_absolute_source(spec, base) for spec in catalog.controlnet),
    )


def _installed(path: Path) -> Path:
    """Where the file is: in the working directory, or beside the installed packages."""
    beside = Path(__file__).resolve().parents[2] / path
    return beside if not path.exists() and beside.exists() else path


def families_of(catalog: ModelCatalog) -> dict[str, str]:
    """Model -> family, of the models whose checkpoints are folders that this process can read."""
    families = {spec.name: _family(spec.source) for spec in catalog.model}
    return {name: family for name, family in families.items() if family is not None}


def _family(source: str) -> str | None:
    if source.startswith("simulated:"):
        return "simulated"
    try:
        index = json.loads((Path(source) / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return family_of_pipeline(str(index.get("_class_name"))) if isinstance(index, dict) else None


Spec = TypeVar("Spec", ModelSpec, LoraSpec, ControlNetSpec, IpAdapterSpec)


def _with_absolute_source(spec: Spec, base: Path) -> Spec:
    if isinstance(spec, ModelSpec) and spec.gguf is not None:
        spec = spec.model_copy(update={"gguf": str((base / spec.gguf).resolve())})
    if isinstance(spec, ModelSpec) and spec.ip_adapter is not None:
        adapter = _with_absolute_source(spec.ip_adapter, base)
        spec = spec.model_copy(update={"ip_adapter": adapter})
    path = Path(spec.source)
    if not (spec.source.startswith((".", "/")) or (base / path).exists()):
        return spec
    return spec.model_copy(update={"source": str((base / path).resolve())})
