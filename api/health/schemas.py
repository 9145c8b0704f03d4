"""What the health checks and the root answer."""

from typing import Literal

from api.wire import AnswerModel


class Health(AnswerModel):
    """The process answers."""

    status: Literal["ok"]
    """Always `ok`."""
    version: str
    """Version of the server."""


class Readiness(AnswerModel):
    """Every part answers."""

    status: Literal["ready"]
    """Always `ready`; otherwise the answer is a 503."""
    database: Literal["ok"]
    """Postgres answers."""
    redis: Literal["ok"]
    """Redis answers."""
    storage: Literal["ok"]
    """Object storage answers."""


class Root(AnswerModel):
    """Where to go from here."""

    name: str
    """Always `darkroom`."""
    version: str
    """Version of the server."""
    links: dict[str, str]
    """URLs of the documentation and of the main resources, by name."""


class ProblemTypeInfo(AnswerModel):
    """One entry of the catalogue of problems."""

    code: str
    """The stable code, as in the `code` of a problem."""
    status: int
    """The HTTP status that it comes with."""
    title: str
    """What it means, in one line."""
    doc: str
    """What to do about it."""
