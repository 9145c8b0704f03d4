"""The rules of recommendations: gather near and successful prompts, rank them, fill up."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.deps import Resources
from api.images import service as images
from api.principal import Principal
from api.prompts.ranking import Candidate, choose_starters, rank, reason
from api.prompts.schemas import Recommendation, Recommendations
from api.prompts.starters import STARTERS
from api.search.service import SECONDS
from shared.search import embeddings, recommend, statements
from shared.search.fusion import QueryVector


@dataclass(frozen=True)
class Asked:
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
    resources: Resources, principal: Principal, asked: Asked
) -> Recommendations:
    """Distinct prompts, best first; shipped ones where there are too few.

    Raises:
        Problem: 503 when the typed text cannot be embedded.
    """
    vectors: Sequence[QueryVector] = ()
    if asked.typed is not None:
        found = await resources.vectors.of(resources, asked.typed)
        vectors = [vector for vector in found if vector.says_something]
    async with resources.tenant_transaction(principal, SECONDS, statements.PLANNING) as session:
        gathered = await _gather(resources, session, principal, asked, vectors)
        candidates = await _candidates(session, principal, asked, gathered)
        chosen = rank(candidates, asked.typed, asked.limit)
        starters = await _starters(session, principal, asked, chosen)
        best = recommend.best_images(principal.tenant_id, [one.prompt_id for one in chosen])
        pictures = {row.prompt_id: row for row in (await session.scalars(best)).all()}
    data = [
        Recommendation(
            prompt=one.text,
            score=one.score,
            reason=reason(one, gathered.near_what),
            starter=False,
            image=images.present(resources, pictures[one.prompt_id]),
        )
        for one in chosen
        if one.prompt_id in pictures  # else its last picture has just been deleted
    ]
    data = sorted(data + starters, key=lambda one: -one.score)
    return Recommendations(data=data[: asked.limit])


async def _gather(
    resources: Resources,
    session: AsyncSession,
    principal: Principal,
    asked: Asked,
    vectors: Sequence[QueryVector],
) -> _Gathered:
    tenant_id = principal.tenant_id
    near_what = "what you typed" if asked.typed is not None else None
    completing: frozenset[UUID] = frozenset()
    others: frozenset[UUID] = frozenset()
    if asked.typed is not None:
        found = await session.scalars(
            recommend.completing(tenant_id, asked.typed, asked.session_id)
        )
        completing = frozenset(found)
    else:
        vectors = await _session_vectors(session, principal, asked.session_id)
        near_what = "what this session made last" if vectors else None
        others = frozenset(await session.scalars(recommend.doing_well(tenant_id)))
    similarity: dict[UUID, float] = {}
    if vectors:
        taken = await resources.censuses.of(session, tenant_id)
        nearest = await session.execute(
            recommend.near(tenant_id, vectors, not taken.many, asked.session_id)
        )
        similarity = {row.id: row.similarity for row in nearest}
    return _Gathered(similarity, completing, others, near_what)


async def _session_vectors(
    session: AsyncSession, principal: Principal, session_id: str | None
) -> list[QueryVector]:
    """The vector of what the session made last, which is on record."""
    if session_id is None:
        return []
    statement = recommend.latest_of_session(principal.tenant_id, session_id)
    prompt_id = (await session.scalars(statement)).one_or_none()
    if prompt_id is None:
        return []
    known = await session.execute(embeddings.get_embedding(principal.tenant_id, prompt_id))
    vectors = [QueryVector(model, dimensions, text) for model, text, dimensions in known]
    return [vector for vector in vectors if vector.says_something]


async def _candidates(
    session: AsyncSession, principal: Principal, asked: Asked, gathered: _Gathered
) -> list[Candidate]:
    """All that was gathered, save what the session has used already."""
    ids = gathered.ids
    if not ids:
        return []
    statement = recommend.fates(principal.tenant_id, ids, asked.session_id)
    return [
        Candidate(
            prompt_id=prompt_id,
            text=text,
            images=made,
            starred=starred,
            reused=reused,
            deleted=deleted,
            similarity=gathered.similarity.get(prompt_id),
            completes=prompt_id in gathered.completing,
        )
        for prompt_id, text, made, starred, reused, deleted, used in (
            await session.execute(statement)
        )
        if not used and made
    ]


async def _starters(
    session: AsyncSession, principal: Principal, asked: Asked, chosen: Sequence[Candidate]
) -> list[Recommendation]:
    """Shipped prompts to complete the text or to fill up with.

    None that is typed, recommended or used already.
    """
    known = [one.text for one in chosen]
    if asked.session_id is not None:
        used = recommend.list_used(principal.tenant_id, asked.session_id, STARTERS)
        known += await session.scalars(used)
    return [
        Recommendation(
            prompt=prompt, score=score, reason="a starter idea", starter=True, image=None
        )
        for prompt, score in choose_starters(STARTERS, asked.typed, asked.limit, without=known)
    ]
