"""Recommendations: gather near and successful prompts, rank them, fill up with starters."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources
from api.core.principal import Principal
from api.images import service as image_service
from api.search.embedding import QueryVectors
from api.search.schemas import Recommendation, Recommendations
from api.search.service import SECONDS, TermStatisticsCache
from shared.search import embeddings, queries, recommendations
from shared.search.ranking import QueryVector

STARTERS: tuple[str, ...] = (
    "snowy mountains at sunset, a lake, pine trees",
    "green hills at noon, the sun, a river, yellow flowers",
    "desert mountains at night, the moon, stars",
    "purple mountains at dawn, a lake, a white house",
    "rocky mountains in a storm, a river, pine trees",
    "snowy hills at night, stars, a red house, pine trees",
    "green mountains at dawn, a river, the sun",
    "purple hills at sunset, the sun, a lake, red flowers",
    "desert hills at noon, the sun, a white house",
    "rocky hills at dawn, a lake, purple flowers",
    "snowy mountains in a storm, a red house",
    "green hills at night, the moon, a lake, a house",
    "purple mountains at night, stars, a river",
    "desert mountains at sunset, the sun, a river",
    "rocky mountains at noon, a lake, pine trees, a house",
    "green hills in a storm, a river, a red house, pine trees",
)

_SIMILARITY = 0.75
_APPEAL = 0.25

_COMPLETED = 0.85
"""What a prompt that completes the typed text is taken to have of similarity, at least."""

_NEAR = 0.25
"""Similarity below which sentences have nothing to do with each other: most pairs have less."""

_STARTER_COMPLETES = 0.6
"""What a shipped prompt scores that completes the typed text: a little less than one's own."""

_STARTER = 0.25
"""What a shipped prompt scores at most that does not complete the typed text."""

_NEUTRAL = 0.5
"""The similarity of prompts when there is nothing to compare with."""

_DOUBT = 2
"""Images without a fate that are added to every prompt: one star of one image is little."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """A prompt of the tenant, and what became of its images."""

    prompt_id: UUID
    text: str
    images: int
    starred: int
    reused: int
    deleted: int
    similarity: float | None = None
    completes: bool = False

    @property
    def is_near(self) -> bool:
        """Whether it has to do with what it was compared with."""
        return self.completes or (self.similarity or 0.0) >= _NEAR

    @property
    def appeal(self) -> float:
        """What people did with its images, -1 … 1: a star counts twice."""
        good = 2 * self.starred + self.reused - self.deleted
        return max(-1.0, min(1.0, good / (self.images + self.deleted + _DOUBT)))

    @property
    def score(self) -> float:
        """0 … 1."""
        similarity = _NEUTRAL if self.similarity is None else self.similarity
        if self.completes:
            similarity = max(similarity, _COMPLETED)
        score = _SIMILARITY * max(0.0, similarity) + _APPEAL * self.appeal
        return round(max(0.0, min(1.0, score)), 6)


def rank(candidates: Iterable[Candidate], typed: str | None, limit: int) -> list[Candidate]:
    """The best, the newer first of equals.

    Distinct in their words, without what was typed itself or is far from it.
    """
    seen = {words_of(typed)} if typed is not None else set()
    ranked: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (one.score, one.prompt_id), reverse=True):
        if typed is not None and not candidate.is_near:
            continue
        words = words_of(candidate.text)
        if words in seen:
            continue
        seen.add(words)
        ranked.append(candidate)
        if len(ranked) == limit:
            break
    return ranked


def reason(candidate: Candidate, near_what: str | None) -> str:
    """Why a prompt is recommended, in a phrase."""
    if candidate.completes:
        parts = ["completes what you typed"]
    elif candidate.is_near and near_what is not None:
        parts = [f"close to {near_what}"]
    else:
        parts = ["one of yours"]
    if candidate.starred:
        parts.append(f"starred {_times(candidate.starred)}")
    if candidate.reused:
        parts.append("its seed was used again")
    if candidate.deleted:
        parts.append(f"deleted {_times(candidate.deleted)}")
    return "; ".join(parts)


def choose_starters(
    starters: Sequence[str], typed: str | None, limit: int, *, without: Iterable[str] = ()
) -> list[tuple[str, float]]:
    """(prompt, score) of the starters that fit best: those that begin so, then by common words.

    Left out are what was typed and the prompts `without`, whatever the order of their words.
    """
    known = {words_of(text) for text in without} | {words_of(typed or "")}
    starters = [starter for starter in starters if words_of(starter) not in known]
    if typed is None:
        return [(starter, _STARTER) for starter in starters[:limit]]
    wanted = set(words_of(typed))
    scored = []
    for place, starter in enumerate(starters):
        begins = starter.lower().startswith(typed.lower())
        shared = len(wanted & set(words_of(starter))) / max(1, len(wanted))
        scored.append((-max(_STARTER_COMPLETES * begins, _STARTER * shared), place, starter))
    return [(starter, round(-score, 6)) for score, _, starter in sorted(scored)[:limit]]


def words_of(text: str) -> tuple[str, ...]:
    """What makes two prompts the same to a reader: their words, whatever the order."""
    return tuple(sorted(set(_WORD.findall(text.casefold()))))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


@dataclass(frozen=True)
class RecommendationRequest:
    """What recommendations are to fit."""

    typed: str | None
    session_id: str | None
    limit: int


@dataclass(frozen=True)
class _Gathered:
    """Prompts to choose from."""

    similarity: dict[UUID, float]
    completing: frozenset[UUID]
    others: frozenset[UUID]
    near_what: str | None

    @property
    def ids(self) -> list[UUID]:
        return sorted(self.similarity.keys() | self.completing | self.others)


async def recommend_prompts(
    resources: Resources, principal: Principal, request: RecommendationRequest
) -> Recommendations:
    """Distinct prompts, best first; shipped ones where there are too few.

    Raises:
        Problem: 503 when the typed text cannot be embedded.
    """
    vectors: Sequence[QueryVector] = ()
    if request.typed is not None:
        of_text = await resources.get(QueryVectors).of(resources, request.typed)
        vectors = [vector for vector in of_text if vector.says_something]
    async with resources.tenant_transaction(principal, SECONDS, queries.PLANNING) as session:
        gathered = await _gather(resources, session, principal, request, vectors)
        candidates = await _candidates(session, principal, request, gathered)
        chosen = rank(candidates, request.typed, request.limit)
        starters = await _starters(session, principal, request, chosen)
        best = recommendations.best_images(principal.tenant_id, [one.prompt_id for one in chosen])
        images = {row.prompt_id: row for row in (await session.scalars(best)).all()}
    data = [
        Recommendation(
            prompt=one.text,
            score=one.score,
            reason=reason(one, gathered.near_what),
            starter=False,
            image=image_service.serialize(resources, images[one.prompt_id]),
        )
        for one in chosen
        if one.prompt_id in images  # else its last image has just been deleted
    ]
    data = sorted(data + starters, key=lambda one: -one.score)
    return Recommendations(data=data[: request.limit])


async def _gather(
    resources: Resources,
    session: AsyncSession,
    principal: Principal,
    request: RecommendationRequest,
    vectors: Sequence[QueryVector],
) -> _Gathered:
    tenant_id = principal.tenant_id
    near_what = "what you typed" if request.typed is not None else None
    completing: frozenset[UUID] = frozenset()
    others: frozenset[UUID] = frozenset()
    if request.typed is not None:
        begun = recommendations.completing(tenant_id, request.typed, request.session_id)
        completing = frozenset(await session.scalars(begun))
    else:
        vectors = await _session_vectors(session, principal, request.session_id)
        near_what = "what this session made last" if vectors else None
        others = frozenset(await session.scalars(recommendations.doing_well(tenant_id)))
    similarity: dict[UUID, float] = {}
    if vectors:
        statistics = await resources.get(TermStatisticsCache).of(session, tenant_id)
        nearest = await session.execute(
            recommendations.near(tenant_id, vectors, not statistics.many, request.session_id)
        )
        similarity = {row.id: row.similarity for row in nearest}
    return _Gathered(similarity, completing, others, near_what)


async def _session_vectors(
    session: AsyncSession, principal: Principal, session_id: str | None
) -> list[QueryVector]:
    """The vector of what the session made last, which is on record."""
    if session_id is None:
        return []
    statement = recommendations.latest_of_session(principal.tenant_id, session_id)
    prompt_id = (await session.scalars(statement)).one_or_none()
    if prompt_id is None:
        return []
    known = await session.execute(embeddings.get_embedding(principal.tenant_id, prompt_id))
    vectors = [QueryVector(model, dimensions, text) for model, text, dimensions in known]
    return [vector for vector in vectors if vector.says_something]


async def _candidates(
    session: AsyncSession, principal: Principal, request: RecommendationRequest, gathered: _Gathered
) -> list[Candidate]:
    """All that was gathered, save what the session has used already."""
    ids = gathered.ids
    if not ids:
        return []
    statement = recommendations.fates(principal.tenant_id, ids, request.session_id)
    return [
        Candidate(
            *(prompt_id, text, images, starred, reused, deleted),
            similarity=gathered.similarity.get(prompt_id),
            completes=prompt_id in gathered.completing,
        )
        for prompt_id, text, images, starred, reused, deleted, is_used in (
            await session.execute(statement)
        )
        if images and not is_used
    ]


async def _starters(
    session: AsyncSession,
    principal: Principal,
    request: RecommendationRequest,
    chosen: Sequence[Candidate],
) -> list[Recommendation]:
    """Shipped prompts to complete the text or to fill up with.

    None that is typed, recommended or used already.
    """
    known = [one.text for one in chosen]
    if request.session_id is not None:
        used = recommendations.list_used(principal.tenant_id, request.session_id, STARTERS)
        known += await session.scalars(used)
    return [
        Recommendation(
            prompt=prompt, score=score, reason="a starter idea", starter=True, image=None
        )
        for prompt, score in choose_starters(STARTERS, request.typed, request.limit, without=known)
    ]
