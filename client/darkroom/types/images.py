"""Images, uploads, receipts read back, sessions, search results and recommendations."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from darkroom.decoding import Document, keep_raw

__all__ = [
    "Deleted",
    "FilterMark",
    "FilteredImage",
    "HistoryImage",
    "Hit",
    "Image",
    "Images",
    "Ingredient",
    "Inspection",
    "MadeWith",
    "Manifest",
    "ManifestAction",
    "ManifestProblem",
    "Provenance",
    "Recommendation",
    "Session",
    "Upload",
]


class FilterMark(Document, frozen=True, kw_only=True):
    """A remark by one of the operator's filters on an image that it let pass."""

    filter: str
    reason: str


class Image(Document, frozen=True, kw_only=True):
    """A finished image. Its URLs work without a key, for some minutes."""

    hidden = ("url", "thumbnail_url")

    id: str
    seed: int
    width: int
    height: int
    content_type: str
    byte_size: int = msgspec.field(name="bytes")
    sha256: str
    url: str
    thumbnail_url: str = ""
    pixel_sha256: str | None = None
    """Of the pixels, decoded to 8-bit RGB; None from older servers."""
    index: int = 0
    """Its position in its job."""
    starred: bool = False
    marks: tuple[FilterMark, ...] = ()
    """Remarks by the operator's filters."""
    job_id: str | None = None
    session_id: str | None = None
    model: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    gpu_seconds: float | None = None
    """Device time of this image; None where the image came as a part of its job."""
    created_at: datetime | None = None

    @property
    def file_name(self) -> str:
        """A name for its file: the id and the usual extension."""
        extension = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}
        return f"{self.id}.{extension.get(self.content_type, 'bin')}"


class FilteredImage(Document, frozen=True, kw_only=True):
    """An image that one of the operator's filters refused: made and charged, but kept nowhere."""

    index: int
    """Its position in its job."""
    seed: int
    filter: str
    reason: str


class Images(tuple[Image, ...]):
    """The finished images of a job in the order of their seeds, and those that were refused."""

    filtered: tuple[FilteredImage, ...] = ()

    @classmethod
    def decoded(cls, value: Sequence[Any]) -> "Images":
        """Of what the service answers.

        Raises:
            ValidationError: they have another shape.
        """
        by_state: dict[bool, list[Any]] = {True: [], False: []}
        for one in value:
            by_state[isinstance(one, dict) and one.get("state") == "filtered"].append(one)
        try:
            made = cls(msgspec.convert(by_state[False], tuple[Image, ...]))
            made.filtered = msgspec.convert(by_state[True], tuple[FilteredImage, ...])
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(str(error).replace("`$", "`$.images")) from None
        keep_raw(tuple(made), by_state[False])
        keep_raw(made.filtered, by_state[True])
        return made


class Upload(Document, frozen=True, kw_only=True):
    """An initial image as it was stored: upright, RGB, PNG, without metadata."""

    hidden = ("url",)

    id: str
    width: int
    height: int
    content_type: str
    byte_size: int = msgspec.field(name="bytes")
    sha256: str
    url: str
    created_at: datetime


class ManifestAction(Document, frozen=True, kw_only=True):
    """Something that was done to an image."""

    action: str | None = None
    digital_source_type: str | None = None


class Ingredient(Document, frozen=True, kw_only=True):
    """A file that an image was made from."""

    title: str | None = None
    relationship: str | None = None
    sha256: str | None = None


class ManifestProblem(Document, frozen=True, kw_only=True):
    """A reason not to trust a manifest."""

    code: str | None = None
    explanation: str | None = None


class Manifest(Document, frozen=True, kw_only=True):
    """The contents of a C2PA manifest: its signer's claim."""

    claim_generator: str | None = None
    issuer: str | None = None
    common_name: str | None = None
    signed_at: str | None = None
    actions: tuple[ManifestAction, ...] = ()
    ingredients: tuple[Ingredient, ...] = ()
    problems: tuple[ManifestProblem, ...] = ()


class Provenance(Document, frozen=True, kw_only=True):
    """How a file says that a model made it."""

    state: str
    """`none`, `metadata`, `invalid`, `expired`, `untrusted`, `trusted`; `unread` by this server."""
    digital_source_type: str | None = None
    manifest: Manifest | None = None


class Inspection(Document, frozen=True, kw_only=True):
    """The receipt in a file that Darkroom made."""

    receipt: Mapping[str, Any]
    stored: bool
    """Whether this exact file is one of your tenant's images."""
    image: Image | None = None
    job: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """What to submit to make it again: `client.jobs.submit(**inspection.job)`."""
    notes: tuple[str, ...] = ()
    """Notes on what a submission cannot express, such as a missing initial image."""
    provenance: Provenance | None = None
    """None from older servers."""


class Deleted(Document, frozen=True, kw_only=True):
    """What was deleted. Only a single image can be restored, for a minute."""

    sessions: int = 0
    jobs: int = 0
    images: int = 0
    prompts: int = 0
    uploads: int = 0
    objects: int = 0
    objects_pending: bool = False
    """The remaining files are removed within minutes: an image can still be restored, or object
    storage did not answer."""


class MadeWith(Document, frozen=True, kw_only=True):
    """The main settings in an image's receipt."""

    kind: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    strength: float | None = None


class Hit(Document, frozen=True, kw_only=True):
    """An image that matches a search."""

    score: float | None
    """0 to 1; None without a query."""
    similarity: float | None
    """Cosine of the two texts' embeddings, -1 to 1; None without a query."""
    prompt: str
    image: Image
    made_with: MadeWith = MadeWith()
    near_duplicates: tuple[Image, ...] = ()
    """With `fold`: the page's other images of nearly the same prompt, best first."""


class Session(Document, frozen=True, kw_only=True):
    """A folder of jobs and their images, created on first use."""

    id: str
    created_at: datetime
    jobs: int
    images: int
    last_image_at: datetime | None = None
    last_used_at: datetime | None = None
    """When its latest job was submitted; None from older servers."""


class HistoryImage(Image, frozen=True, kw_only=True):
    """An image in a session's history."""

    score: float | None = None
    """How well it matches the query, 0 to 1; None without one."""


class Recommendation(Document, frozen=True, kw_only=True):
    """A prompt worth trying."""

    prompt: str
    score: float
    reason: str
    starter: bool = False
    """Shipped with Darkroom, not one of your tenant's prompts."""
    image: Image | None = None
    """The prompt's best image; None for a starter."""
