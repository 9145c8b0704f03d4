"""The service itself: models, health, and the catalogue of problems."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from darkroom.decoding import Document


@dataclass(frozen=True, kw_only=True)
class ServingWorker(Document):
    """A live worker that has loaded the model."""

    name: str
    state: str
    device: str | None = None
    rows: int | None = None
    content_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class Model(Document):
    """A model with its defaults and limits."""

    name: str
    default: bool
    default_width: int
    default_height: int
    max_width: int
    max_height: int
    default_steps: int
    max_steps: int
    default_guidance_scale: float
    default_scheduler: str
    schedulers: tuple[str, ...]
    served: bool | None = None
    """Whether a worker runs it now; None while nobody can say."""
    workers: tuple[ServingWorker, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Health(Document):
    """The process answers."""

    status: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Readiness(Document):
    """Every part answers."""

    status: str
    database: str
    redis: str
    storage: str


@dataclass(frozen=True, kw_only=True)
class Root(Document):
    """Where to go from the address of the service."""

    name: str
    version: str
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ProblemType(Document):
    """One entry of the catalogue of problems."""

    code: str
    status: int
    title: str
    doc: str
