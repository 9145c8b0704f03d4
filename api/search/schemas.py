"""What clients get from searches and as recommendations."""

from typing import Annotated

from pydantic import Field

from api.core.bodies import RequestModel
from api.core.serialization import AnswerModel
from api.images.schemas import Image


class MadeWith(AnswerModel):
    """The main settings of the image's receipt."""

    kind: str | None
    """`txt2img`, `img2img`, `inpaint` or `upscale`."""
    steps: int | None
    """Denoising steps."""
    guidance_scale: float | None
    """Classifier-free guidance scale."""
    scheduler: str | None
    """Name of the scheduler."""
    strength: float | None
    """How far the result may leave the initial image, 0 to 1. Null for txt2img."""


class Hit(AnswerModel):
    """An image whose prompt fits the query."""

    score: float | None = Field(
        description="0 to 1: 0.55 × similarity, 0.2 × share of the query's words, and 0.25 where "
        "the exact phrase, or every rare word of it, is in the prompt. Where pixels are "
        "compared: the similarity, 0 where it is negative or not known yet. null without a query."
    )
    similarity: float | None = Field(
        description="Cosine of the two embeddings, of texts or of images, -1 to 1; 0 where the "
        "model knows no part of a text. null without a query."
    )
    prompt: str
    """The prompt that the image was made from."""
    image: Image
    """The image, with its URLs."""
    made_with: MadeWith
    """The main settings it was made with."""
    near_duplicates: list[Image] = Field(
        default=[],
        description="With `fold`: the page's other images of nearly the same prompt, best first.",
    )


class LikeThis(RequestModel):
    """Search by an image that is here already."""

    image_id: Annotated[str, Field(max_length=64, description="`img_…`")]


class Recommendation(AnswerModel):
    """A prompt worth trying."""

    prompt: str
    """The text of the prompt."""
    score: float = Field(description="0 to 1.")
    reason: str
    """Why it is recommended, in a few words of English."""
    starter: bool = Field(description="true: shipped with Darkroom, not a prompt of your tenant.")
    image: Image | None = Field(description="The prompt's best image; null for a starter.")


class Recommendations(AnswerModel):
    """Prompts worth trying, best first."""

    data: list[Recommendation]
    """The recommended prompts, best first."""


class HistoryImage(Image):
    """An image of a session's history."""

    score: float | None = Field(description="How well it fits `q`, 0 to 1; null without one.")
