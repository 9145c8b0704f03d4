"""A batch at a glance: its pictures' thumbnails with their names, as one WebP."""

import asyncio

from api.batches.tiles import Tile
from api.deps import Resources
from api.fairness import on_thread
from api.principal import Principal
from shared.batches import statements
from shared.batches.models import Batch
from shared.gallery import statements as gallery
from shared.storage import ObjectMissing

_AT_ONCE = 8
_turn = asyncio.Semaphore(1)


async def draw_contact_sheet(
    resources: Resources, principal: Principal, batch: Batch, *, limit: int, columns: int
) -> bytes | None:
    """The first `limit` pictures in the order of the lines, as WebP; None while there is none.

    Raises:
        StorageUnavailable: S3 is away.
    """
    tiles = await _tiles(resources, principal, batch, limit)
    if not tiles:
        return None
    # One sheet at a time: hundreds of open thumbnails are some ten MB.
    async with _turn:
        bodies: list[bytes | None] = []
        for start in range(0, len(tiles), _AT_ONCE):
            some = tiles[start : start + _AT_ONCE]
            reads = (resources.on_storage(_read, resources, tile) for tile in some)
            bodies += await asyncio.gather(*reads)
        # Imported late: most API processes never draw, and Pillow takes 4 MB.
        from api.batches.sheet import draw

        return await on_thread(draw, tiles, bodies, columns)


async def _tiles(
    resources: Resources, principal: Principal, batch: Batch, limit: int
) -> list[Tile]:
    async with resources.tenant_transaction(principal) as session:
        asked = statements.list_items(batch, limit, states=("succeeded",))
        jobs = {job.id: job for job in (await session.scalars(asked)).all()}
        images = (await session.scalars(gallery.list_images_of_jobs(jobs))).all()
    return [
        Tile(jobs[image.job_id].custom_id or "", f"seed {image.seed}", image.thumbnail_s3_key)
        for image in images[:limit]
    ]


def _read(resources: Resources, tile: Tile) -> bytes | None:
    try:
        return resources.storage.get(tile.s3_key).body
    except ObjectMissing:
        return None
