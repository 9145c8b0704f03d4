"""What clients get for uploads."""

from api.wire import AnswerModel, UtcTime


class Upload(AnswerModel):
    """A picture as it was kept: upright, RGB, PNG, without metadata."""

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
