"""Greeting cards: a FastAPI app that orders images from Darkroom and hears of them by webhook.

    uvicorn --app-dir examples/fastapi_app app:app --port 9000

Nothing polls. A card is written down before its job is submitted, and its ID is the job's
idempotency key, so a request that is sent twice makes one card. Webhooks come at least once and in
no order: the first one that tells the end of a job changes the row, later ones change nothing.
"""

import os
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from html import escape
from pathlib import Path
from typing import Annotated

from fastapi import BackgroundTasks, FastAPI, Form, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

import darkroom

URL = os.environ.get("CARDS_URL", "http://127.0.0.1:9000")
"""Where Darkroom reaches this app: https and public, but for the local stack."""
FOLDER = Path(os.environ.get("CARDS_FOLDER", "cards"))
FOLDER.mkdir(exist_ok=True)


def sql(statement: str, *values: str) -> list[tuple[str, ...]]:
    """Run a statement in a transaction of its own and return its rows."""
    with closing(sqlite3.connect(FOLDER / "cards.sqlite")) as database, database:
        return database.execute(statement, values).fetchall()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the client, and ask for the secret that signs the webhooks of single jobs."""
    sql("CREATE TABLE IF NOT EXISTS cards (id TEXT PRIMARY KEY, prompt TEXT, state TEXT)")
    async with darkroom.AsyncClient() as client:
        app.state.client = client
        app.state.secret = (await client.webhooks.secret.get()).secret
        yield


app = FastAPI(title="Greeting cards", lifespan=lifespan)


@app.post("/cards")
async def order(request: Request, prompt: Annotated[str, Form(min_length=1)]) -> RedirectResponse:
    """Order a card and go back to the page, which shows it as soon as it is there."""
    card = uuid.uuid4().hex
    sql("INSERT INTO cards VALUES (?, ?, 'ordered')", card, prompt)
    try:
        await request.app.state.client.jobs.submit(
            f"{prompt}, greeting card",
            idempotency_key=card,
            metadata={"card": card},
            webhook={"url": f"{URL}/hooks/darkroom"},
        )
    except darkroom.DarkroomError as error:
        sql("DELETE FROM cards WHERE id = ?", card)
        raise HTTPException(502, f"The card was not ordered: {error}") from error
    return RedirectResponse("/", status_code=303)


@app.post("/hooks/darkroom", status_code=204)
async def receive(request: Request, later: BackgroundTasks) -> None:
    """Verify, write down, answer; the image is fetched afterwards."""
    body = await request.body()  # the bytes as they came: parsing first would change them
    try:
        event = darkroom.webhooks.verify(body, request.headers, request.app.state.secret)
    except darkroom.InvalidWebhookSignatureError:
        raise HTTPException(400, "not signed by Darkroom") from None
    card = event.data["metadata"]["card"]
    change = "UPDATE cards SET state = ? WHERE id = ? AND state = 'ordered' RETURNING id"
    if event.type == "job.succeeded":
        if sql(change, "fetching", card):
            later.add_task(fetch, request.app.state.client, event.data["images"][0]["id"], card)
    else:
        sql(change, event.data["state"], card)


async def fetch(client: darkroom.AsyncClient, image: str, card: str) -> None:
    """By its ID: the URLs in a webhook expire after minutes."""
    await client.images.save(image, FOLDER / f"{card}.png")
    sql("UPDATE cards SET state = 'ready' WHERE id = ?", card)


@app.get("/cards/{card}.png")
def show(card: uuid.UUID) -> FileResponse:
    """The image of a card."""
    path = FOLDER / f"{card.hex}.png"
    if not path.exists():
        raise HTTPException(404, "There is no such card, or it is not ready.")
    return FileResponse(path)


@app.get("/")
def page() -> HTMLResponse:
    """A form, and all cards; it reloads while one is on its way."""
    cards = sql("SELECT id, prompt, state FROM cards ORDER BY rowid DESC")
    figures = "".join(
        f'<figure><img src="/cards/{card}.png" alt=""><figcaption>{escape(prompt)}</figure>'
        if state == "ready"
        else f"<p>{escape(prompt)}: {state} …</p>"
        for card, prompt, state in cards
    )
    waiting = any(state in ("ordered", "fetching") for _, _, state in cards)
    reload = '<meta http-equiv="refresh" content="1">' if waiting else ""
    return HTMLResponse(
        f"<!doctype html><title>Cards</title>{reload}<h1>Greeting cards</h1>"
        '<form method="post" action="/cards"><input name="prompt" required autofocus'
        f' placeholder="a red house by a lake"> <button>Order</button></form>{figures}'
    )
