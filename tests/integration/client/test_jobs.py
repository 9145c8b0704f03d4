"""Jobs and images through the client, blocking and not, against the running system."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import darkroom
from darkroom import (
    AsyncClient,
    Canceled,
    Client,
    ImageMade,
    JobChanged,
    ProgressMade,
    Queued,
    Succeeded,
)

NOBODY = "unserved"
"""A model that no worker of these tests serves: its jobs stay queued."""


def test_generate_gives_images_with_their_seeds_and_receipts(
    client: Client, tmp_path: Path
) -> None:
    first, second = client.generate("a red circle", num_images=2, seed=7)
    assert (first.seed, second.seed) == (7, 8)
    assert first.prompt == "a red circle"
    data = first.bytes()
    assert hashlib.sha256(data).hexdigest() == first.sha256
    assert first.receipt()["seed"] == 7
    assert first.save(tmp_path / "deep" / "circle.png").read_bytes() == data
    assert first.save(tmp_path / "new") == tmp_path / "new" / f"{first.id}.png"
    assert first.save(tmp_path) == tmp_path / f"{first.id}.png"
    assert second.thumbnail()[8:12] == b"WEBP"
    assert [entry.name for entry in tmp_path.rglob("*.part")] == []


def test_the_same_without_blocking(async_client: Callable[[], AsyncClient], tmp_path: Path) -> None:
    async def many() -> None:
        async with async_client() as client:
            made = await asyncio.gather(
                *(client.generate("a blue square", seed=seed) for seed in range(5))
            )
            assert [images[0].seed for images in made] == [0, 1, 2, 3, 4]
            saved = await made[3][0].save(tmp_path)
            assert saved.read_bytes() == await made[3][0].bytes()
            handle = await client.jobs.submit("a blue square")
            kinds = [type(event) async for event in handle.events()]
            assert kinds[0] is kinds[-1] is JobChanged
            listed = [job.id async for job in client.jobs.list(page_size=2)]
            assert listed[0] == handle.id
            assert len(listed) == len(set(listed)) > 5
            assert isinstance(await handle.status(), Succeeded)

    asyncio.run(many())


def test_a_handle_tells_what_happens(client: Client) -> None:
    handle = client.jobs.submit("a green hill", seeds=[3, 1], steps=30)
    assert handle.job.seeds == (3, 1)
    events = list(handle.events())
    first, last = events[0], events[-1]
    assert isinstance(first, JobChanged)
    assert isinstance(last, JobChanged)
    assert last.job == handle.job
    assert isinstance(handle.status(), Succeeded)
    assert {event.seed for event in events if isinstance(event, ImageMade)} <= {1, 3}
    for event in events:
        if isinstance(event, ProgressMade):
            assert 0 < event.step <= event.steps == 30
    assert [made.seed for made in handle.result()] == [3, 1]
    assert [image.id for image in client.jobs.images(handle)] == [
        made.id for made in handle.result()
    ]


def test_cancel_retry_and_delete(client: Client) -> None:
    handle = client.jobs.submit("a job for nobody", model=NOBODY, session_id="cancels")
    state = handle.status()
    assert isinstance(state, Queued)
    assert state.position is not None
    with pytest.raises(darkroom.WaitTimeoutError) as unfinished:
        handle.wait(timeout=0.1)
    assert unfinished.value.resource.id == handle.id
    with pytest.raises(darkroom.JobNotFinished):
        handle.delete()
    assert handle.cancel().state == "canceled"
    assert isinstance(handle.status(), Canceled)
    with pytest.raises(darkroom.JobCanceled) as canceled:
        handle.result()
    assert canceled.value.job.id == handle.id
    assert handle.retry().state == "queued"
    handle.cancel()
    assert handle.delete().jobs == 1
    with pytest.raises(darkroom.NotFoundError) as gone:
        handle.refresh()
    assert gone.value.code == "not_found"
    assert gone.value.status == 404
    assert gone.value.request_id


def test_what_breaks_a_rule_says_which(client: Client) -> None:
    with pytest.raises(darkroom.ValidationFailed) as refused:
        client.jobs.submit("a cat", steps=0, width=65)
    assert {error.pointer for error in refused.value.errors} == {"/steps", "/width"}
    assert str(refused.value.request_id) in str(refused.value)


def test_a_key_of_ones_own_names_one_wish(client: Client) -> None:
    first = client.jobs.submit("a wish", idempotency_key="wish-1")
    again = client.jobs.submit("a wish", idempotency_key="wish-1")
    assert again.id == first.id
    with pytest.raises(darkroom.IdempotencyKeyReuse):
        client.jobs.submit("another wish", idempotency_key="wish-1")


def test_an_image_becomes_the_next_ones_beginning(client: Client, tmp_path: Path) -> None:
    [start] = client.generate("a house", seed=1)
    path = start.save(tmp_path / "house.png")
    upload = client.uploads.create(path)
    assert client.uploads.get(upload) == upload or client.uploads.get(upload).id == upload.id
    assert upload.id in [one.id for one in client.uploads.list(page_size=1).take(50)]
    ways: tuple[darkroom.types.InitImage, ...] = (path, path.read_bytes(), start, upload, start.id)
    for init_image in ways:
        handle = client.jobs.submit("at night", init_image=init_image, strength=0.5, wait=60)
        assert handle.job.kind == "img2img"
        assert handle.job.state == "succeeded"
    keyed = [
        client.jobs.submit("at dawn", init_image=path, idempotency_key="house-at-dawn").id
        for _ in range(2)
    ]
    assert keyed[0] == keyed[1]


def test_receipts_are_read_back_and_run_again(client: Client, tmp_path: Path) -> None:
    [image] = client.generate("a lake", seed=11)
    again = image.reproduce()
    assert (again.verdict, again.max_pixel_difference) == ("identical", 0)
    assert again.image is not None
    found = client.images.inspect(image.save(tmp_path))
    assert found.stored
    assert found.image is not None
    assert found.image.id == image.id
    twin = client.generate(**found.job)[0]
    assert twin.sha256 == image.sha256


def test_stars_and_deletion(client: Client) -> None:
    [image] = client.generate("a star")
    assert image.star().starred
    assert client.images.get(image).starred
    assert not image.unstar().starred
    assert image.delete().images == 1
    with pytest.raises(darkroom.NotFoundError):
        client.images.get(image)
