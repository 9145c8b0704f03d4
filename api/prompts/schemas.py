"""What clients get as recommendations."""

from pydantic import Field

from api.images.schemas import Image
from api.wire import AnswerModel


class Recommendation(AnswerModel):
    """A prompt worth trying."""

    prompt: str
    """The text of the prompt."""
    score: float = Field(description="0 to 1.")
    reason: str
    """Why it is recommended, in a few words of English."""
    starter: bool = Field(description="true: shipped with Darkroom, not a prompt of your tenant.")
    image: Image | None = Field(description="The prompt's best picture; null for a starter.")


class Recommendations(AnswerModel):
    """Prompts worth trying, best first."""

    data: list[Recommendation]
    """The recommended prompts, best first."""
