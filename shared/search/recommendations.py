"""SQL of recommendations: prompts that are near, that complete, that did well, and their fates."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.orm import aliased

from shared.core.database import only
from shared.images.models import Image, Prompt
from shared.jobs.models import Job
from shared.search import ranking
from shared.search.embeddings import PROMPTS
from shared.search.ranking import QueryVector

NEAR = 60
_COMPLETING = 60
_STARRED = 200
_LATEST = 20

_SEEDS = 20
"""Images of one prompt whose seeds are followed."""

_LAST_CHARACTER = "\U0010ffff"
_FOLDED_LENGTH = 200


def near(
    tenant_id: UUID, vectors: Sequence[QueryVector], exactly: bool, session_id: str | None
) -> Select[UUID, float]:
    """(prompt, similarity) of the nearest that the session has made nothing of, nearest first."""
    unused = _unused_in(tenant_id, session_id)
    texts = {vector.model: literal(vector.text, Text) for vector in vectors}
    similarity = ranking.similarity(texts).label("similarity")
    statement = select(Prompt.id, similarity).where(Prompt.tenant_id == tenant_id, unused)
    if not exactly:
        legs = [
            select(Prompt.id)
            .where(Prompt.tenant_id == tenant_id, literal_column(where), unused)
            .order_by(order)
            .limit(NEAR)
            for where, order in (
                PROMPTS.nearest(vector.model, vector.dimensions, texts[vector.model])
                for vector in vectors
            )
        ]
        statement = statement.where(or_(*(Prompt.id.in_(leg) for leg in legs)))
    return statement.order_by(similarity.desc(), Prompt.id.desc()).limit(NEAR)


def completing(tenant_id: UUID, typed: str, session_id: str | None) -> Select[UUID]:
    """Prompts that begin with what was typed, whatever the case, and continue.

    Without those that the session has made images of.
    """
    begin = typed.lower()[:_FOLDED_LENGTH]
    whole = func.lower(literal(typed, Text))
    return (
        select(Prompt.id)
        .where(
            Prompt.tenant_id == tenant_id,
            # Comparisons, and not LIKE, which row-level security keeps from the index.
            Prompt.folded >= begin,
            Prompt.folded < begin + _LAST_CHARACTER,
            # The index has the first 200 characters alone.
            func.starts_with(func.lower(Prompt.text), whole),
            func.lower(Prompt.text) != whole,
            _unused_in(tenant_id, session_id),
        )
        .order_by(Prompt.folded)
        .limit(_COMPLETING)
    )


def doing_well(tenant_id: UUID) -> Select[UUID]:
    """Prompts of the latest stars, and the latest prompts."""
    starred = (
        select(Image.prompt_id)
        .where(Image.tenant_id == tenant_id, Image.starred, Image.reproduces.is_(None))
        .order_by(Image.id.desc())
        .limit(_STARRED)
        .subquery()
    )
    latest = (
        select(Prompt.id)
        .where(Prompt.tenant_id == tenant_id)
        .order_by(Prompt.id.desc())
        .limit(_LATEST)
        .subquery()
    )
    return select(starred.c.prompt_id).union(select(latest.c.id)).subquery().select()


def list_used(tenant_id: UUID, session_id: str, texts: Sequence[str]) -> Select[str]:
    """Those of the texts that jobs of the session have as their prompt."""
    return (
        select(Job.prompt)
        .where(Job.tenant_id == tenant_id, Job.session_id == session_id, Job.prompt.in_(texts))
        .distinct()
    )


def latest_of_session(tenant_id: UUID, session_id: str) -> Select[UUID]:
    """The prompt of the session's newest image."""
    return (
        select(Image.prompt_id)
        .where(Image.tenant_id == tenant_id, only(Image.session_id, session_id))
        .order_by(Image.session_id.desc(), Image.id.desc())
        .limit(1)
    )


def fates(
    tenant_id: UUID, prompt_ids: Sequence[UUID], session_id: str | None
) -> Select[UUID, str, int, int, int, int, bool]:
    """(prompt, text, images, starred, seeds used again, deleted, used in the session)."""
    own = and_(Image.prompt_id == Prompt.id, Image.reproduces.is_(None))
    images = select(func.count()).select_from(Image).where(own)
    starred = images.where(Image.starred)
    newest = (
        select(Image.id, Image.seed)
        .where(own)
        .order_by(Image.id.desc())
        .limit(_SEEDS)
        .correlate(Prompt)
        .subquery()
    )
    again = aliased(Image)
    reused = (
        select(func.count())
        .select_from(newest)
        .where(
            select(again.id)
            .where(
                again.tenant_id == tenant_id,
                again.seed == newest.c.seed,
                # Later and for another prompt: whoever took the seed from here.
                again.id > newest.c.id,
                again.prompt_id != Prompt.id,
            )
            .correlate(newest, Prompt)
            .exists()
        )
    )
    return select(
        Prompt.id,
        Prompt.text,
        images.scalar_subquery(),
        starred.scalar_subquery(),
        reused.scalar_subquery(),
        Prompt.deleted_images,
        _used_in(tenant_id, session_id),
    ).where(Prompt.tenant_id == tenant_id, Prompt.id.in_(prompt_ids))


def best_images(tenant_id: UUID, prompt_ids: Sequence[UUID]) -> Select[Image]:
    """One image of each prompt: a starred one if there is one, the newest of them."""
    best = (
        select(Image)
        .where(
            Image.tenant_id == tenant_id, Image.prompt_id == Prompt.id, Image.reproduces.is_(None)
        )
        .order_by(Image.starred.desc(), Image.id.desc())
        .limit(1)
        .lateral("best")
    )
    image = aliased(Image, best)
    return (
        select(image)
        .select_from(Prompt)
        .join(best, true())
        .where(Prompt.tenant_id == tenant_id, Prompt.id.in_(prompt_ids))
    )


def _unused_in(tenant_id: UUID, session_id: str | None) -> ColumnElement[bool]:
    """Whether the session has no image of the prompt; asked of many, so it is read once."""
    if session_id is None:
        return true()
    used = select(Image.prompt_id).where(
        Image.tenant_id == tenant_id, Image.session_id == session_id
    )
    return Prompt.id.not_in(used)


def _used_in(tenant_id: UUID, session_id: str | None) -> ColumnElement[bool]:
    if session_id is None:
        return ~true()
    images = select(Image.id).where(Image.prompt_id == Prompt.id, Image.session_id == session_id)
    jobs = select(Job.id).where(
        and_(Job.tenant_id == tenant_id, Job.session_id == session_id, Job.prompt == Prompt.text)
    )
    return or_(images.exists(), jobs.exists())
