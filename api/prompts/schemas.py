"""What clients get as recommendations."""

from pydantic import Field

from api.images.schemas import Image
from api.wire import AnswerModel


class Recommendation(AnswerModel):
    """A prompt worth trying."""

    prompt: str
    score: float = Field(description="0 to 1.")
    reason: str
    starter: bool = Field(description="true: shipped with Darkroom, not a prompt of your tenant.")
    image: Image | None = Field(description="The prompt's best picture; null for a starter.")


class Recommendations(AnswerModel):
    """Prompts worth trying, best first."""

    data: list[Recommendation]
