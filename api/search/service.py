"""The rules of search: embed, choose how to look, and go through the pages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal
from api.deps import Resources
from api.images import service as images
from api.metrics.families import timed_search
from api.search import cursor
from api.search.cursor import Cursor, Phase
from api.search.schemas import Hit, MadeWith
from api.wire import Page
from shared.gallery import models as rows
from shared.search import statements
from shared.search.filters import Filters
from shared.search.fusion import DECIMALS
from shared.search.lexical import Lexical, weigh
from shared.search.statements import Hits, Position, Question

SECONDS = 10.0
"""For the SQL of one search: going through a million prompts exactly takes two."""
_HIGHEST = UUID(int=2**128 - 1)
_PAGES: dict[Phase, Callable[[Question, int, Position | None], Hits]] = {
    Phase.FEW: statements.page_of_few,
    Phase.MANY: statements.page_of_many,
    Phase.REST: statements.page_of_rest,
}


@dataclass(frozen=True)
class Asked:
    """One page of one search."""

    text: str
    filters: Filters
    limit: int
    after: str | None = None
    min_score: float | None = None

    def scope(self, principal: Principal) -> tuple[object, ...]:
        """What a cursor is bound to."""
        return (
            "search",
            principal.tenant_id,
            self.text,
            self.filters.facts(),
            self.min_score,
        )


@dataclass(frozen=True)
class Found:
    """An entry, and the phase it was found in."""

    phase: Phase
    image: rows.Image
    prompt: str
    prompt_id: UUID
    score: float
    similarity: float

    @property
    def position(self) -> Position:
        """Where a page that ends here ends."""
        return Position(self.score, self.prompt_id, self.image.id)


async def search(held: Resources, principal: Principal, asked: Asked) -> Page[Hit]:
    """One page of the pictures whose prompts fit a text, best first.

    Raises:
        Problem: 422 for a cursor of another search, 503 when the text cannot be embedded.
    """
    found, next_cursor = await find(held, principal, asked)
    return page_of(held, found, next_cursor)


def page_of(held: Resources, found: Sequence[Found], next_cursor: str | None) -> Page[Hit]:
    """The wire form of a page."""
    return Page(
        data=[_present(held, entry) for entry in found],
        has_more=next_cursor is not None,
        next_cursor=next_cursor,
    )


@timed_search("whole")
async def find(
    held: Resources, principal: Principal, asked: Asked
) -> tuple[list[Found], str | None]:
    """The same, as rows."""
    vectors = await held.vectors.of(held, asked.text)
    scope = asked.scope(principal)
    async with held.tenant_transaction(principal, SECONDS) as session:
        prepared = await session.execute(statements.prepare(principal.tenant_id, asked.filters))
        count, size, *_ = prepared.one()
        words, samples, looked_at = await _words(session, principal, asked.text)
        position: Position | None = None
        if asked.after is not None:
            begun = cursor.decode(asked.after, words, *scope)
            phase, position, lexical = begun.phase, begun.position, begun.lexical
        else:
            phase = Phase.FEW if count <= statements.EXACT_UP_TO else Phase.MANY
            prompts = max(int(size), looked_at) if looked_at >= statements.SAMPLE else looked_at
            lexical = await _weigh(session, samples, looked_at, prompts)
        question = Question(
            principal.tenant_id, asked.filters, vectors, asked.text, lexical, asked.min_score
        )
        found = await _fill(session, question, phase, position, asked.limit + 1)
    page = found[: asked.limit]
    if len(found) <= asked.limit:
        return page, None
    last = Cursor(page[-1].phase, page[-1].position, lexical)
    return page, cursor.encode(last, words, *scope)


async def _words(
    session: AsyncSession, principal: Principal, text: str
) -> tuple[list[str], dict[str, int], int]:
    """All words of the query in order, how often the newest prompts hold each, of how many."""
    statement = statements.sample_words(principal.tenant_id, text)
    sampled = (await session.execute(statement)).all()
    hits = {word: count for word, count, _ in sampled}
    return sorted(hits), hits, sampled[0][2] if sampled else 0


async def _weigh(
    session: AsyncSession, hits: dict[str, int], looked_at: int, prompts: int
) -> Lexical:
    """Common words are judged by the sample, the others counted."""
    if looked_at < statements.SAMPLE:
        return weigh(hits, prompts)
    seldom = [word for word, count in hits.items() if count < statements.COMMON_IN_SAMPLE]
    counts = {word: round(count / looked_at * prompts) for word, count in hits.items()}
    if seldom:
        counted = await session.execute(statements.count_words(seldom))
        counts.update((word, count) for word, count in counted)
    return weigh(counts, prompts)


async def _fill(
    session: AsyncSession,
    question: Question,
    phase: Phase,
    after: Position | None,
    wanted: int,
) -> list[Found]:
    """As many entries as are wanted, or all that there are."""
    found = await _read(session, question, phase, after, wanted)
    if phase is Phase.MANY and len(found) < wanted and not await _cut_off(session, question):
        rest = await _read(session, question, Phase.REST, None, wanted - len(found))
        found += rest
    return found


async def _read(
    session: AsyncSession,
    question: Question,
    phase: Phase,
    after: Position | None,
    wanted: int,
) -> list[Found]:
    result: Sequence[Any] = (await session.execute(_PAGES[phase](question, wanted, after))).all()
    return entries(phase, result)


def entries(phase: Phase, result: Sequence[Any]) -> list[Found]:
    """Rows of `Hits` as entries."""
    return [
        Found(phase, image, prompt, prompt_id, score, similarity)
        for image, prompt, prompt_id, score, similarity in result
    ]


async def _cut_off(session: AsyncSession, question: Question) -> bool:
    """Whether `min_score` has ended the candidates: what is no candidate scores still less."""
    if question.min_score is None:
        return False
    below = Position(question.min_score, _HIGHEST, _HIGHEST)
    every = replace(question, min_score=None)
    return any(
        entry.score < question.min_score
        for entry in await _read(session, every, Phase.MANY, below, 1)
    )


def _present(held: Resources, entry: Found) -> Hit:
    return Hit(
        score=entry.score,
        similarity=round(entry.similarity, DECIMALS),
        prompt=entry.prompt,
        image=images.present(held, entry.image),
        made_with=made_with(entry.image),
    )


def made_with(row: rows.Image) -> MadeWith:
    """The main settings of an image's receipt; null where an old one does not say."""
    receipt = row.receipt
    scheduler = receipt.get("scheduler")
    return MadeWith(
        kind=receipt.get("kind"),
        steps=receipt.get("steps"),
        guidance_scale=receipt.get("guidance_scale"),
        scheduler=scheduler["name"] if isinstance(scheduler, dict) else None,
        strength=receipt.get("strength"),
    )
