"""Pictures get their vectors in windows: none is passed over, the newest come first."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from migrations.commands import upgrade
from shared.core.database import open_engine, session_factory
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.tenants import RESOURCES, Tenant
from shared.images import models as image_models
from tests.integration.search.gallery import any_vector, insert_image
from tests.integration.search.test_pixels import encoded, paint
from worker.search import reembed
from worker.search.reembed import PictureKeeper

PICTURES = 11


def png(width: int, height: int) -> bytes:
    """A PNG that says to be so large, and turns into garbage where its pixels begin."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(64 * (1 + 64 * 3)))[:20]),
        (b"\xad\xff\x01\x02", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


DAMAGES = {
    "empty": b"",
    "no picture": b"no picture",
    "SyntaxError of Pillow": png(64, 64),
    "DecompressionBombError of Pillow": png(60_000, 60_000),
}


class Eye:
    """A model that is loaded and sees the same in every picture; it notes how many it gets."""

    def __init__(self) -> None:
        self.portions: list[int] = []

    def wait(self, _: float | None) -> "Eye":
        return self

    def embed(self, pictures: Sequence[Image.Image]) -> list[list[float]]:
        self.portions.append(len(pictures))
        return [[1.0, 0.0, 0.0] for _ in pictures]


@pytest.fixture(scope="module")
def engine(servers: EmbeddedServers, settings: Settings) -> Iterator[Engine]:
    """A ledger of its own, with pictures."""
    url = servers.postgres.create_database("windows")
    upgrade(url)
    create_key(url, tenant="windows", name="windows", scopes=RESOURCES)
    opened = open_engine(Settings(**{**settings.model_dump(), "database_url": url}))
    yield opened
    opened.dispose()
    servers.postgres.drop_database("windows")


@pytest.fixture(scope="module")
def images(engine: Engine, storage: Storage) -> list[UUID]:
    """The pictures, the newest first."""
    storage.put("windows/meadow.webp", encoded(paint("meadow"), "WEBP"), "image/webp")
    with session_factory(engine).begin() as session:
        tenant = session.scalars(select(Tenant.id)).one()
        made = [
            insert_image(
                session, tenant, "a", any_vector(1), thumbnail_s3_key="windows/meadow.webp"
            )
            for _ in range(PICTURES)
        ]
    return made[::-1]


@pytest.fixture
def database(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> sessionmaker[Session]:
    """No picture has a vector yet, and windows are small."""
    monkeypatch.setattr(reembed, "_IMAGES_AT_ONCE", 2)
    monkeypatch.setattr(reembed, "_WINDOW", 3)
    opened = session_factory(engine)
    with opened.begin() as session:
        session.execute(delete(image_models.ImageVector))
    return opened


@pytest.fixture
def eye() -> Eye:
    """The model."""
    return Eye()


@pytest.fixture
def keeper(
    *,
    engine: Engine,
    database: sessionmaker[Session],
    storage: Storage,
    settings: Settings,
    eye: Eye,
) -> PictureKeeper:
    """Of a process that leads."""
    model: Any = eye
    own = settings.model_copy(update={"picture_model": "eye", "picture_dimensions": 3})
    return PictureKeeper(own, engine, database, storage, model=model, leads=lambda: True)


def with_vectors(database: sessionmaker[Session]) -> set[UUID]:
    """Pictures that have been looked at."""
    with database() as session:
        return set(session.scalars(select(image_models.ImageVector.image_id)))


def forget(database: sessionmaker[Session], images: Sequence[UUID]) -> None:
    """Take the vectors of some pictures away."""
    with database.begin() as session:
        session.execute(
            delete(image_models.ImageVector).where(image_models.ImageVector.image_id.in_(images))
        )


def test_all_windows_are_gone_through(
    keeper: PictureKeeper, eye: Eye, database: sessionmaker[Session], images: list[UUID]
) -> None:
    assert keeper.go_through(among_all=True) == PICTURES
    assert with_vectors(database) == set(images)
    assert max(eye.portions) == 2
    forget(database, [images[4], images[-1]])  # in the middle and at the end
    assert keeper.go_through(among_all=True) == 2
    assert with_vectors(database) == set(images)
    assert keeper.go_through(among_all=True) == 0


def test_a_quick_look_is_at_the_newest(
    keeper: PictureKeeper, database: sessionmaker[Session], images: list[UUID]
) -> None:
    assert keeper.go_through(among_all=False) == 3
    assert with_vectors(database) == set(images[:3])


def test_while_there_is_much_to_do_the_newest_are_begun_with_again(
    keeper: PictureKeeper,
    database: sessionmaker[Session],
    images: list[UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reembed, "_ANEW_AFTER", 4)
    keeper.go_through(among_all=True)
    assert with_vectors(database) < set(images)
    forget(database, images[:1])
    keeper.go_through(among_all=True)
    assert images[0] in with_vectors(database)
    keeper.go_through(among_all=True)
    assert with_vectors(database) == set(images)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_holds_up_no_other(
    keeper: PictureKeeper,
    database: sessionmaker[Session],
    storage: Storage,
    images: list[UUID],
    damage: bytes,
) -> None:
    """It counts as looked at, and has no vector."""
    storage.put("windows/damaged.webp", damage, "image/webp")
    damaged = images[1]
    with database.begin() as session:
        session.execute(
            update(image_models.Image)
            .where(image_models.Image.id == damaged)
            .values(thumbnail_s3_key="windows/damaged.webp")
        )
    assert keeper.go_through(among_all=True) == PICTURES
    with database() as session:
        without = select(image_models.ImageVector.image_id).where(
            image_models.ImageVector.embedding.is_(None)
        )
        assert session.scalars(without).all() == [damaged]
