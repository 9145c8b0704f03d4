"""`darkroom search`, `history` and `recommend`: find earlier images and prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from darkroom.cli.command import FIND, Cli, command
from darkroom.cli.failures import CliError, ExitCode
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
from darkroom.cli.output import Column, age, ago
from darkroom.types import HistoryImage, Hit, Recommendation
from darkroom.types import Session as SessionInfo

app = typer.Typer()


@command(
    app,
    "search",
    panel=FIND,
    examples=[
        'darkroom search "mountains in the evening" --starred',
        "darkroom search --starred",
        "darkroom search --like img_…",
    ],
)
def search(
    cli: Cli,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="What the image's prompt means.")
    ] = None,
    *,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE|FILE",
            help="Search by an image instead of words: its id, or a file made by Darkroom.",
        ),
    ] = None,
    session: Session = None,
    model: Model = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Generated with this seed.")] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="txt2img, img2img, inpaint or upscale.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, help="In pixels.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="In pixels.")] = None,
    starred: Annotated[
        bool | None, typer.Option("--starred/--not-starred", help="Only starred, or only others.")
    ] = None,
    since: Since = None,
    before: Before = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="The job's metadata. Repeatable; all must match."),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exclude lower scores.")
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(metavar="ORDER", help="relevance (meaning and words) or similarity."),
    ] = None,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="Rank near-duplicates below other good matches.")
    ] = False,
    limit: Limit = 10,
) -> None:
    """Find images whose prompts match the query in meaning, best first.

    Without a query, list the images that match the filters, newest first.
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
        raise CliError("--rank needs a query; it does not work with --like.", ExitCode.USAGE)
    if like is not None and query is None:
        source: Any = Path(like) if Path(like).is_file() else like
        result = cli.client.images.similar(source, **filters).take(limit)
    elif like is None and (query is not None or filters):
        result = cli.client.search(query, **given(rank=rank), **filters).take(limit)
    else:
        raise CliError("Give a query, --like, or a filter such as --starred.", ExitCode.USAGE)
    columns: list[Column[Hit]] = [
        Column("score", lambda hit: None if hit.score is None else f"{hit.score:.3f}", right=True),
        Column("image", lambda hit: hit.image.id),
        Column("seed", lambda hit: hit.image.seed, right=True),
        Column("prompt", lambda hit: hit.prompt, wrap=True, lines=2),
        Column("session", lambda hit: hit.image.session_id, drop=1),
        Column("age", lambda hit: hit.image.created_at, lambda hit: age(hit.image.created_at)),
    ]
    cli.output.rows(result, columns, empty="Nothing matches. Try fewer filters or other words.")


@command(app, "history", panel=FIND, examples=["darkroom history default", "darkroom history"])
def history(
    cli: Cli,
    session: Annotated[
        str | None,
        typer.Argument(
            metavar="SESSION", help="Omit it to list sessions.", autocompletion=complete_session
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Search by meaning, best first.")
    ] = None,
    limit: Limit = 20,
) -> None:
    """List a session's images, newest first; without a session, list the sessions."""
    if session is None:
        if query is not None:
            raise CliError("Name the session to search, or use darkroom search.", ExitCode.USAGE)
        _list_sessions(cli, limit)
        return
    columns: list[Column[HistoryImage]] = [
        Column("image", lambda image: image.id),
        Column("seed", lambda image: image.seed, right=True),
        Column("prompt", lambda image: image.prompt, wrap=True, lines=2),
        Column("", lambda i: "starred" if i.starred else "", lambda i: "★" if i.starred else ""),
        Column("age", lambda image: image.created_at, lambda image: age(image.created_at)),
    ]
    result = cli.client.sessions.images(session, query).take(limit)
    cli.output.rows(result, columns, empty=f"Session {session} has no images.")


def _list_sessions(cli: Cli, limit: int) -> None:
    columns: list[Column[SessionInfo]] = [
        Column("session", lambda session: session.id),
        Column("jobs", lambda session: session.jobs, right=True),
        Column("images", lambda session: session.images, right=True),
        Column("last image", lambda s: s.last_image_at, lambda s: ago(s.last_image_at)),
        Column("last used", lambda s: s.last_used_at, lambda s: ago(s.last_used_at)),
    ]
    result = cli.client.sessions.list().take(limit)
    cli.output.rows(result, columns, empty="There are no sessions yet; the first job creates one.")


@command(app, "recommend", panel=FIND, examples=['darkroom recommend "a lake"'])
def recommend(
    cli: Cli,
    query: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="A prompt, even a half-typed one.")
    ] = None,
    session: Session = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=50, help="How many to show.")
    ] = 8,
) -> None:
    """Suggest prompts worth trying, best first, with the reason."""
    result = cli.client.prompts.recommend(query, session_id=session, limit=limit)
    columns: list[Column[Recommendation]] = [
        Column("prompt", lambda each: each.prompt, wrap=True),
        Column("why", lambda each: each.reason, wrap=True),
        Column("score", lambda each: f"{each.score:.2f}", right=True, drop=1),
        Column("image", lambda each: each.image.id if each.image else None),
    ]
    cli.output.rows(result, columns, empty="There is nothing to recommend yet.")
