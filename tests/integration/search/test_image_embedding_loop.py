"""Images get their vectors in windows: none is passed over, the newest come first."""

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
from shared.core.database import open_engine, session_factory
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.tenants import RESOURCES, Tenant
from shared.images import models as image_models
from tests.conftest import MIGRATED
from tests.images import encode
from tests.integration.search.gallery import any_vector, insert_image
from tests.integration.search.test_pixels import paint
from tests.unit.images import hostile
from worker.search import reembed
from worker.search.reembed import ImageIndexer

IMAGES = 11


def damaged_png(width: int, height: int) -> bytes:
    """A PNG that says to be so large, and turns into garbage where its pixels begin."""
    data = zlib.compress(bytes(64 * (1 + 64 * 3)))[:20]
    return hostile.png(width, height, data=data, behind=hostile.chunk(b"\xad\xff\x01\x02", b""))


DAMAGES = {
    "empty": b"",
    "no image": b"no image",
    "SyntaxError of Pillow": damaged_png(64, 64),
    "DecompressionBombError of Pillow": damaged_png(60_000, 60_000),
}


class Eye:
    """A model that is loaded and sees the same in every image; it notes how many it gets."""

    def __init__(self) -> None:
        self.portions: list[int] = []

    def wait(self, _: float | None) -> "Eye":
        return self

    def embed(self, images: Sequence[Image.Image]) -> list[list[float]]:
        self.portions.append(len(images))
        return [[1.0, 0.0, 0.0] for _ in images]


@pytest.fixture(scope="module")
def engine(servers: EmbeddedServers, settings: Settings) -> Iterator[Engine]:
    """A database of its own, with images."""
    url = servers.postgres.create_database("windows", template=MIGRATED)
    create_key(url, tenant="windows", name="windows", scopes=RESOURCES)
    opened = open_engine(Settings(**{**settings.model_dump(), "database_url": url}))
    yield opened
    opened.dispose()
    servers.postgres.drop_database("windows")


@pytest.fixture(scope="module")
def images(engine: Engine, storage: Storage) -> list[UUID]:
    """The images, the newest first."""
    storage.put("windows/meadow.webp", encode(paint("meadow"), "WEBP", lossless=True), "image/webp")
    with session_factory(engine).begin() as session:
        tenant = session.scalars(select(Tenant.id)).one()
        made = [
            insert_image(
                session, tenant, "a", any_vector(1), thumbnail_s3_key="windows/meadow.webp"
            )
            for _ in range(IMAGES)
        ]
    return made[::-1]


@pytest.fixture
def database(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> sessionmaker[Session]:
    """No image has a vector yet, and windows are small."""
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
def restarter(
    *,
    engine: Engine,
    database: sessionmaker[Session],
    storage: Storage,
    settings: Settings,
    eye: Eye,
) -> ImageIndexer:
    """Of a process that leads."""
    model: Any = eye
    own = settings.model_copy(
        update={"image_embedding_model": "eye", "image_embedding_dimensions": 3}
    )
    return ImageIndexer(own, engine, database, storage, model=model, is_leader=lambda: True)


def with_vectors(database: sessionmaker[Session]) -> set[UUID]:
    """Images that have been looked at."""
    with database() as session:
        return set(session.scalars(select(image_models.ImageVector.image_id)))


def evict(database: sessionmaker[Session], images: Sequence[UUID]) -> None:
    """Take the vectors of some images away."""
    with database.begin() as session:
        session.execute(
            delete(image_models.ImageVector).where(image_models.ImageVector.image_id.in_(images))
        )


def test_all_windows_are_gone_through(
    restarter: ImageIndexer, eye: Eye, database: sessionmaker[Session], images: list[UUID]
) -> None:
    assert restarter.go_through(among_all=True) == IMAGES
    assert with_vectors(database) == set(images)
    assert max(eye.portions) == 2
    evict(database, [images[4], images[-1]])  # in the middle and at the end
    assert restarter.go_through(among_all=True) == 2
    assert with_vectors(database) == set(images)
    assert restarter.go_through(among_all=True) == 0


def test_a_quick_look_is_at_the_newest(
    restarter: ImageIndexer, database: sessionmaker[Session], images: list[UUID]
) -> None:
    assert restarter.go_through(among_all=False) == 3
    assert with_vectors(database) == set(images[:3])


def test_while_there_is_much_to_do_the_newest_are_begun_with_again(
    restarter: ImageIndexer,
    database: sessionmaker[Session],
    images: list[UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reembed, "_ANEW_AFTER", 4)
    restarter.go_through(among_all=True)
    assert with_vectors(database) < set(images)
    evict(database, images[:1])
    restarter.go_through(among_all=True)
    assert images[0] in with_vectors(database)
    restarter.go_through(among_all=True)
    assert with_vectors(database) == set(images)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_holds_up_no_other(
    restarter: ImageIndexer,
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
    assert restarter.go_through(among_all=True) == IMAGES
    with database() as session:
        without = select(image_models.ImageVector.image_id).where(
            image_models.ImageVector.embedding.is_(None)
        )
        assert session.scalars(without).all() == [damaged]
