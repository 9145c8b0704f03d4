"""The model catalogue: what `models.toml` declares, read by the API (limits) and workers (load)."""

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""``auto`` is float16 on a CUDA device and float32 on a CPU."""


Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]
"""A picture's side in pixels."""


ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class CatalogError(Exception):
    """`models.toml` is missing or says something that cannot be."""


class ModelSpec(BaseModel):
    """One `[[model]]` table: where a checkpoint comes from, its defaults, its limits, its speed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ModelName
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
    default_steps: Annotated[int, Field(ge=1, le=500)] = 25
    max_steps: Annotated[int, Field(ge=1, le=500)] = 150
    default_guidance_scale: Annotated[float, Field(ge=0, le=50)] = 7.5

    rows: Annotated[int, Field(ge=1, le=64)] | None = None
    """Fixed batch shape. None: 1 on a CPU; on a GPU measured by the warm-up."""
    warm_sizes: tuple[tuple[Side, Side], ...] = ()
    """(width, height) pairs generated before the worker is ready. Empty: the default size."""

    tick_budget: Annotated[float, Field(gt=0)] = 120.0
    """Seconds after which a tick or a decode counts as hung, and the process leaves."""

    channels_last: bool = False
    fuse_qkv: bool = False
    compile: Literal["off", "graphs", "inductor"] = "off"
    vae_slicing: bool = False
    vae_tiling: bool = False

    @model_validator(mode="after")
    def _is_consistent(self) -> "ModelSpec":
        if self.default_width > self.max_width or self.default_height > self.max_height:
            raise ValueError("the default size is larger than the largest size")
        if self.default_steps > self.max_steps:
            raise ValueError("default_steps is larger than max_steps")
        for width, height in self.sizes_to_warm:
            if width > self.max_width or height > self.max_height:
                raise ValueError(f"warm size {width}x{height} is larger than the largest size")
        return self

    @property
    def sizes_to_warm(self) -> tuple[tuple[int, int], ...]:
        """The (width, height) pairs that the warm-up generates."""
        return self.warm_sizes or ((self.default_width, self.default_height),)


class ModelCatalog(BaseModel):
    """Every declared model, in the order of the file; the first is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> "ModelCatalog":
        names = [spec.name for spec in self.model]
        if len(names) != len(set(names)):
            raise ValueError("two models have the same name")
        return self

    @property
    def default(self) -> ModelSpec:
        """The model of a job that names none."""
        return self.model[0]

    def get(self, name: str) -> ModelSpec | None:
        """The model of that name, or None."""
        return next((spec for spec in self.model if spec.name == name), None)


@lru_cache
def load_catalog(path: Path) -> ModelCatalog:
    """Read `models.toml`.

    Folder sources come back absolute, so that no caller depends on the working directory.

    Raises:
        CatalogError: the file is missing, is not TOML, or declares something impossible; the
            message is one sentence fit for a person.
    """
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
        raise CatalogError(f"The model catalogue {path}: {where}: {first['msg']}.") from error
    specs = tuple(_with_absolute_source(spec, path.resolve().parent) for spec in catalog.model)
    return ModelCatalog(model=specs)


def _with_absolute_source(spec: ModelSpec, base: Path) -> ModelSpec:
    folder = Path(spec.source)
    looks_like_folder = spec.source.startswith((".", "/")) or (base / folder).is_dir()
    if not looks_like_folder:
        return spec
    return spec.model_copy(update={"source": str((base / folder).resolve())})
