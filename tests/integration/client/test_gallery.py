"""Search, history, recommendations, keys and health through the client."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image as Pillow

import darkroom
from darkroom import AsyncClient, Client
from tests.processes import ApiProcess, WorkerProcess

PROMPTS = ("a lighthouse at dusk", "a lighthouse in fog", "a bowl of soup")


@pytest.fixture(scope="module")
def gallery(
    api: ApiProcess, generate_worker: WorkerProcess, searchable: None, key: str
) -> list[darkroom.ImageHandle]:
    """Three images in a session of their own."""
    with Client(api.url, key) as client:
        handles = [
            client.jobs.submit(prompt, session_id="coast", metadata={"n": str(number)}, seed=number)
            for number, prompt in enumerate(PROMPTS)
        ]
        return [handle.result()[0] for handle in handles]


def test_search_by_meaning_with_filters(
    client: Client, gallery: list[darkroom.ImageHandle]
) -> None:
    hits = list(client.search("lighthouse", session_id="coast", page_size=1))
    assert len(hits) == 3
    assert {hits[0].prompt, hits[1].prompt} == set(PROMPTS[:2])
    scores = [hit.score or 0.0 for hit in hits]
    assert scores == sorted(scores, reverse=True)
    [soup] = client.search("food", session_id="coast", metadata={"n": "2"})
    assert soup.image.id == gallery[2].id
    since = datetime.now(UTC) + timedelta(hours=1)
    assert client.search("lighthouse", created_after=since).take(5) == []


def test_other_orders_and_lists_without_a_query(
    client: Client, gallery: list[darkroom.ImageHandle]
) -> None:
    near = client.search("lighthouse", rank="similarity", diversity=True, session_id="coast").take(
        9
    )
    assert len(near) == 3
    client.images.star(gallery[1])
    [hit] = client.search(session_id="coast", starred=True)
    assert (hit.image.id, hit.score, hit.similarity) == (gallery[1].id, None, None)
    client.images.unstar(gallery[1])


def test_more_like_this(
    client: Client, gallery: list[darkroom.ImageHandle], tmp_path: Path
) -> None:
    near = client.images.bind(gallery[0]).similar(session_id="coast").take(1)
    assert near[0].image.id == gallery[1].id
    path = client.images.save(gallery[0], tmp_path)
    by_file = client.images.similar(path, session_id="coast").take(3)
    assert gallery[1].id in [hit.image.id for hit in by_file]
    assert client.images.bind(near[0].image).bytes() == client.images.download(gallery[1])


def test_history_and_sessions(client: Client, gallery: list[darkroom.ImageHandle]) -> None:
    assert client.sessions.get("coast").images == 3
    assert "coast" in [session.id for session in client.sessions.list(page_size=1)]
    newest = [image.id for image in client.sessions.images("coast", page_size=2)]
    assert set(newest) == {made.id for made in gallery}
    best = client.sessions.images("coast", "soup").take(1)[0]
    assert best.id == gallery[2].id
    assert best.score
    client.generate("a throw-away", session_id="throw-away")
    assert client.sessions.delete("throw-away").images == 1


@pytest.mark.parametrize("name", [".", ".."])
def test_a_session_of_dots_is_refused(client: Client, name: str) -> None:
    with pytest.raises(darkroom.ValidationFailed, match="session_id"):
        client.jobs.submit("a boat", session_id=name)
    for ask in (client.sessions.get, client.sessions.delete):
        with pytest.raises(darkroom.MalformedId, match="nor a name"):
            ask(name)


def test_recommendations(client: Client, gallery: list[darkroom.ImageHandle]) -> None:
    found = client.prompts.recommend("a lightho", limit=5)
    assert found[0].prompt in PROMPTS[:2]
    assert found[0].image is not None
    assert found[0].reason
    assert len(client.prompts.recommend(limit=50)) > len(client.prompts.recommend(limit=2)) == 2


def test_a_list_can_be_gone_on_with(client: Client, gallery: list[darkroom.ImageHandle]) -> None:
    pages = list(itertools.islice(client.jobs.list(page_size=1).pages(), 3))
    assert all(len(page.data) == 1 for page in pages)
    rest = client.jobs.list(page_size=1, after=pages[0].next_cursor).take(2)
    assert [job.id for job in rest] == [pages[1].data[0].id, pages[2].data[0].id]
    with pytest.raises(darkroom.MalformedCursor):
        client.jobs.list(after="nonsense").page()


def test_the_service_itself(client: Client, key: str) -> None:
    assert client.health.live().status == "ok"
    assert client.health.ready().redis == "ok"
    assert client.health.root().name == "darkroom"
    assert client.health.problem("not_found").status == 404
    assert abs(client.health.clock_skew() or 0) < 5
    models = {model.name: model for model in client.models.list()}
    assert models["sim"].served
    assert models["sim"].workers
    usage = client.usage()
    assert usage.key_id == key.split("_")[1]
    assert usage.gpu_seconds_per_day.limit is None


def test_a_wrong_key_is_said_to_be_that(api: ApiProcess) -> None:
    async def ask() -> None:
        async with AsyncClient(api.url, "drk_k3v8e0x9m5q7_wrong") as client:
            await client.models.list().page()

    with pytest.raises(darkroom.AuthenticationError):
        asyncio.run(ask())
    client = Client(api.url, "drk_k3v8e0x9m5q7_wrong")
    with client, pytest.raises(darkroom.AuthenticationError) as refused:
        client.usage()
    assert "wrong" not in str(refused.value)


def test_keys(client: Client) -> None:
    made = client.keys.create("a reader", scopes=["jobs:read"], quotas={"concurrent_jobs": 2})
    assert made.quotas is not None
    assert made.quotas.concurrent_jobs == 2
    assert made.key not in repr(made)
    with Client(client.url, made.key) as reader:
        assert reader.usage().concurrent_jobs.limit == 2
        with pytest.raises(darkroom.InsufficientScope):
            reader.jobs.submit("a cat")
    assert made.id in [key.id for key in client.keys.list(page_size=1)]
    client.keys.revoke(made)


# --- In notebooks, and with Pillow ---


def test_notebooks_show_images_whatever_their_format(client: Client) -> None:
    made = {
        name: client.generate("a lake", seed=4, steps=2, output_format=name)[0]
        for name in ("png", "webp", "jpeg")
    }
    assert made["png"]._repr_png_() == made["png"].bytes()
    assert (made["webp"]._repr_png_() or b"").startswith(b"\x89PNG")
    assert made["jpeg"]._repr_png_() is made["png"]._repr_jpeg_() is None
    assert made["jpeg"]._repr_jpeg_() == made["jpeg"].bytes()
    grid = darkroom.ImageList(made.values())._repr_html_()
    assert grid.count('<img src="data:image/webp;base64,') == 3
    gone = client.images.bind(made["png"])
    gone.delete()
    assert "seed 4" in darkroom.ImageList([gone])._repr_html_()


def test_images_of_pillows_go_in_and_come_out(
    client: Client, api: ApiProcess, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Pillow.new("RGBA", (64, 64), (20, 90, 200, 128))
    (image,) = client.generate("a lake", init_image=start, steps=2, progress=True)
    assert image.pil().size == (64, 64)
    assert "1 image in" in capsys.readouterr().err

    async def run() -> None:
        async with AsyncClient(api.url, key) as other:
            mask = Pillow.new("L", (64, 64), 255)
            images = await other.generate("a lake", init_image=start, mask_image=mask, steps=2)
            assert (await images[0].pil()).size == (64, 64)
            assert (images[0]._repr_png_() or b"").startswith(b"\x89PNG")
            assert "<img " in darkroom.ImageList(images)._repr_html_()

    asyncio.run(run())


@pytest.mark.usefixtures("cpu_worker")
def test_a_bar_follows_a_batch(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    batch = client.batches.submit(["a hat", "a scarf"], defaults={"steps": 2})
    assert client.batches.wait(batch, 120, progress=True).state == "succeeded"
    assert "succeeded, 2 of 2 images" in capsys.readouterr().err
