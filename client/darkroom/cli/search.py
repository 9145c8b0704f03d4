"""`darkroom search`, `history` and `recommend`: find what was made before."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError
from darkroom.cli.options import (
    Before,
    Limit,
    Model,
    Session,
    Since,
    complete_session,
    given,
    pairs,
)
from darkroom.cli.output import Column
from darkroom.cli.words import ago

if TYPE_CHECKING:
    from darkroom.types.gallery import HistoryImage, Hit, Recommendation


def search(
    cli: Cli,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="What the picture's prompt means.")
    ] = None,
    *,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE|FILE", help="Instead of words: a picture, by id or as Darkroom's file."
        ),
    ] = None,
    session: Session = None,
    model: Model = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Made with this seed.")] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="txt2img or img2img.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    starred: Annotated[
        bool | None, typer.Option("--starred/--not-starred", help="Starred ones, or the others.")
    ] = None,
    since: Since = None,
    before: Before = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of the job. May be repeated; all must hold."),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Leave out what scores less.")
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(metavar="ORDER", help="relevance (meaning and words) or similarity."),
    ] = None,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="Near-duplicates behind what is about as good.")
    ] = False,
    limit: Limit = 10,
) -> None:
    """Pictures whose prompts mean what the query says, best first.

    Without a query: those that the filters leave, newest first.
    """
    filters = given(
        session_id=session,
        model=model,
        seed=seed,
        kind=kind,
        width=width,
        height=height,
        starred=starred,
        created_after=since,
        created_before=before,
        metadata=pairs(metadata) if metadata else None,
        min_score=min_score,
        diversity=diverse or None,
    )
    if like is not None and rank is not None:
        raise CliError("--rank orders what a query finds, not --like.", ExitCode.USAGE)
    if like is not None and query is None:
        source: Any = Path(like) if Path(like).is_file() else like
        found = cli.client.images.similar(source, **filters).take(limit)
    elif like is None and (query is not None or filters):
        found = cli.client.search(query, **given(rank=rank), **filters).take(limit)
    else:
        raise CliError("Give a query, --like, or a filter such as --starred.", ExitCode.USAGE)
    cli.output.rows(found, _HITS, nothing="Nothing fits. Fewer filters, or other words?")


_HITS: "list[Column[Hit]]" = [
    Column("score", lambda hit: None if hit.score is None else f"{hit.score:.3f}", right=True),
    Column("image", lambda hit: hit.image.id),
    Column("seed", lambda hit: hit.image.seed, right=True),
    Column("prompt", lambda hit: hit.prompt, wrap=True),
    Column("session", lambda hit: hit.image.session_id),
    Column("made", lambda hit: hit.image.created_at, lambda hit: ago(hit.image.created_at)),
]


def history(
    cli: Cli,
    session: Annotated[
        str | None,
        typer.Argument(
            metavar="SESSION", help="Without one: the sessions.", autocompletion=complete_session
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="By meaning, best first.")
    ] = None,
    limit: Limit = 20,
) -> None:
    """A session's pictures, newest first; without a session, the sessions."""
    if session is None:
        if query is not None:
            raise CliError("Name the session to search; or use darkroom search.", ExitCode.USAGE)
        _list_sessions(cli, limit)
        return
    found = cli.client.sessions.images(session, query).take(limit)
    cli.output.rows(found, _HISTORY, nothing=f"The session {session} has no pictures.")


_HISTORY: "list[Column[HistoryImage]]" = [
    Column("image", lambda image: image.id),
    Column("seed", lambda image: image.seed, right=True),
    Column("prompt", lambda image: image.prompt, wrap=True),
    Column(
        "", lambda image: "starred" if image.starred else "", lambda i: "★" if i.starred else ""
    ),
    Column("made", lambda image: image.created_at, lambda image: ago(image.created_at)),
]


def _list_sessions(cli: Cli, limit: int) -> None:
    cli.output.rows(
        cli.client.sessions.list().take(limit),
        [
            Column("session", lambda session: session.id),
            Column("jobs", lambda session: session.jobs, right=True),
            Column("pictures", lambda session: session.images, right=True),
            Column("latest", lambda s: s.last_image_at, lambda s: ago(s.last_image_at)),
        ],
        nothing="There are no sessions yet; the first job makes one.",
    )


def recommend(
    cli: Cli,
    query: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="A prompt, which may be half typed.")
    ] = None,
    session: Session = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=50, help="So many.")] = 8,
) -> None:
    """Prompts worth trying, best first, and why."""
    found = cli.client.prompts.recommend(query, session_id=session, limit=limit)
    columns: list[Column[Recommendation]] = [
        Column("prompt", lambda each: each.prompt, wrap=True),
        Column("why", lambda each: each.reason, wrap=True),
        Column("score", lambda each: f"{each.score:.2f}", right=True),
        Column("picture", lambda each: each.image.id if each.image else None),
    ]
    cli.output.rows(found, columns, nothing="There is nothing to recommend yet.")


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to the tree, in that panel of its help."""
    command(
        app,
        "search",
        panel=panel,
        examples=[
            'darkroom search "mountains in the evening" --starred',
            "darkroom search --starred",
            "darkroom search --like img_…",
        ],
    )(search)
    command(app, "history", panel=panel, examples=["darkroom history default", "darkroom history"])(
        history
    )
    command(app, "recommend", panel=panel, examples=['darkroom recommend "a lake"'])(recommend)
