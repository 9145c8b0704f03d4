"""What the health checks and the root answer."""

from typing import Literal

from api.wire import AnswerModel


class Health(AnswerModel):
    """The process answers."""

    status: Literal["ok"]
    version: str


class Readiness(AnswerModel):
    """Every part answers."""

    status: Literal["ready"]
    database: Literal["ok"]
    redis: Literal["ok"]
    storage: Literal["ok"]


class Root(AnswerModel):
    """Where to go from here."""

    name: str
    version: str
    links: dict[str, str]


class ProblemTypeInfo(AnswerModel):
    """One entry of the catalogue of problems."""

    code: str
    status: int
    title: str
    doc: str
