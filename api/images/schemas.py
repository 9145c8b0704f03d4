"""What clients send and get for images, uploads and sessions."""

from typing import Literal

from pydantic import Field

from api.core.serialization import AnswerModel, UtcTime


class FilterMark(AnswerModel):
    """A remark by one of the operator's filters on an image that it let pass."""

    filter: str
    """The filter's name."""
    reason: str
    """The reason, in words."""


class FilteredImage(AnswerModel):
    """An image that one of the operator's filters refused: made and charged, but kept nowhere."""

    state: Literal["filtered"]
    """`filtered`."""
    index: int
    """Place among the job's images, from 0."""
    seed: int
    """The seed that it was made with."""
    filter: str
    """The filter's name."""
    reason: str
    """Why it refused the image."""


class JobImage(AnswerModel):
    """A finished image of a job. Its URLs read it without a key, for some minutes."""

    id: str
    """`img_…`."""
    state: Literal["ready"] = "ready"
    """`ready`; a job may also have images that are `filtered`."""
    index: int
    """Place among the job's images, from 0."""
    seed: int
    """The seed that it was made with."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    content_type: str
    """Media type of the file: `image/png`, `image/webp` or `image/jpeg`."""
    bytes: int
    """Size of the file, in bytes."""
    sha256: str
    """SHA-256 of the file, 64 lower-case hexadecimal digits."""
    pixel_sha256: str | None
    """SHA-256 of the file's pixels, decoded to 8-bit RGB, row by row. Signing and metadata do not
    change it. Null: an earlier version made the image."""
    url: str
    """Signed URL of the file. Needs no key and expires within 15 minutes."""
    thumbnail_url: str
    """Signed URL of a small WebP. Needs no key and expires within 15 minutes."""
    starred: bool
    """Whether it was marked as one to keep."""
    marks: list[FilterMark]
    """Remarks of the operator's filters; in the receipt, too."""


class ManifestAction(AnswerModel):
    """Something that was done to an image."""

    action: str | None
    """Such as `c2pa.created`."""
    digital_source_type: str | None
    """IPTC's word for how. Null: the action says nothing of it."""


class Ingredient(AnswerModel):
    """A file that an image was made from."""

    title: str | None
    """Title. Null: it has none."""
    relationship: str | None
    """`parentOf`, `inputTo` or `componentOf`."""
    sha256: str | None
    """SHA-256 of the file. Null: it is not named by its hash."""


class ManifestProblem(AnswerModel):
    """A reason not to trust a manifest."""

    code: str | None
    """A code of the C2PA specification, such as `signingCredential.untrusted`."""
    explanation: str | None
    """The same in words."""


class Manifest(AnswerModel):
    """The contents of a C2PA manifest. All of it is its signer's claim."""

    claim_generator: str | None = None
    """The program that wrote it, such as `Darkroom 0.1.0`."""
    issuer: str | None = None
    """The organization that the signer's certificate names."""
    common_name: str | None = None
    """The name of the certificate."""
    signed_at: str | None = None
    """By a time-stamp authority. Null: none was asked."""
    actions: list[ManifestAction] = Field(default_factory=list)
    """The actions, in order."""
    ingredients: list[Ingredient] = Field(default_factory=list)
    """The sources it was made from."""
    problems: list[ManifestProblem] = Field(default_factory=list)
    """Why it is not `trusted`."""


ProvenanceState = Literal[
    "none", "metadata", "invalid", "expired", "untrusted", "trusted", "unread"
]


class Provenance(AnswerModel):
    """Marks in a file that a model made it: 50 of each list, 300 characters of each text."""

    state: ProvenanceState = Field(
        description=(
            "none: no mark. metadata: an IPTC digital source type and no manifest. invalid: the "
            "manifest is damaged, or not of this file. expired: the manifest is of this file; its "
            "certificate has expired. untrusted: the manifest is of this file; "
            "nobody that this server trusts vouches for its signer. trusted: somebody does. "
            "unread: this server cannot read manifests."
        )
    )
    digital_source_type: str | None
    """IPTC's, by the file's XMP. Null: it has none."""
    manifest: Manifest | None
    """The C2PA manifest. Null: there is none, or it cannot be read here."""


class ImageLinks(AnswerModel):
    """Links from an image; they need the API key."""

    self: str
    """This image."""
    content: str
    """Its file."""
    thumbnail: str
    """Its thumbnail."""
    receipt: str
    """Its receipt."""
    job: str
    """The job that made it."""


class Image(JobImage):
    """A finished image, wherever it came from."""

    job_id: str
    """The job that made it, `job_…`."""
    session_id: str
    """The session that it belongs to."""
    model: str
    """Name of the model that made it."""
    prompt: str
    """The prompt it was made from."""
    negative_prompt: str | None
    """What the image should not show. Null: none was given."""
    gpu_seconds: float
    """Device time it took, in seconds; images of one batch share theirs."""
    created_at: UtcTime
    """When it was finished."""
    links: ImageLinks
    """URLs of related resources. They need the API key."""


class Upload(AnswerModel):
    """An image as it was kept: upright, RGB, PNG, without metadata."""

    id: str
    """`upl_…`. Pass it as `init_image` of a job."""
    width: int
    """In pixels, after the image was turned upright."""
    height: int
    """In pixels, after the image was turned upright."""
    content_type: str
    """The media type of the stored file: always `image/png`."""
    bytes: int
    """Size of the stored file, in bytes."""
    sha256: str
    """SHA-256 of the stored file, 64 lower-case hexadecimal digits."""
    url: str
    """Signed URL of the stored file. Needs no key and expires within 15 minutes."""
    created_at: UtcTime
    """When it was uploaded."""


class Deleted(AnswerModel):
    """Deleted. Only a single image can be restored, for a minute."""

    sessions: int
    """Sessions deleted."""
    jobs: int
    """Jobs deleted, with their attempts and events."""
    images: int
    """Images deleted, with their thumbnails."""
    prompts: int = Field(
        description="With their embeddings: those that no image of yours is made from any more."
    )
    uploads: int
    """Uploads deleted."""
    objects: int = Field(description="Files in object storage: images and thumbnails.")
    objects_pending: bool = Field(
        description="The remaining files are removed within minutes: an image can still be "
        "restored, or storage did not answer."
    )


class SessionLinks(AnswerModel):
    """Links from a session."""

    self: str
    """This session."""
    images: str
    """Its images, newest first."""


class Session(AnswerModel):
    """A folder of jobs and their images, made on first use."""

    id: str
    """The name that jobs gave as `session_id`."""
    created_at: UtcTime
    """When its first job was submitted."""
    jobs: int
    """Jobs in the session, in any state."""
    images: int
    """Finished images in the session, without those that `reproduce` made again."""
    last_image_at: UtcTime | None
    """When its latest image was made. Null: it has none yet."""
    last_used_at: UtcTime
    """When its latest job was submitted. Sessions are listed by it, the latest first."""
    links: SessionLinks
    """URLs of related resources."""
