"""Pictures get their vectors in windows: none is passed over, the newest come first."""

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from migrations.commands import upgrade
from shared.database import open_engine, session_factory
from shared.gallery import models as rows
from shared.settings import Settings
from shared.storage import Storage
from shared.tenancy.models import Tenant
from shared.tenancy.scopes import RESOURCES
from tests.integration.search.gallery import any_vector, insert_image
from tests.integration.search.test_pixels import encoded, paint
from worker.embedding import embed_pictures
from worker.embedding.embed_pictures import PictureKeeper

PICTURES = 11


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
    monkeypatch.setattr(embed_pictures, "_AT_ONCE", 2)
    monkeypatch.setattr(embed_pictures, "_WINDOW", 3)
    opened = session_factory(engine)
    with opened.begin() as session:
        session.execute(delete(rows.ImageVector))
    return opened


def keeper_of(
    engine: Engine, database: sessionmaker[Session], storage: Storage, settings: Settings
) -> tuple[PictureKeeper, Eye]:
    """Of a process that leads."""
    model: Any = Eye()
    own = settings.model_copy(update={"picture_model": "eye", "picture_dimensions": 3})
    keeper = PictureKeeper(own, engine, database, storage, model=model, leads=lambda: True)
    return keeper, model


def with_vectors(database: sessionmaker[Session]) -> set[UUID]:
    """Pictures that have been looked at."""
    with database() as session:
        return set(session.scalars(select(rows.ImageVector.image_id)))


def test_all_windows_are_gone_through(
    *,
    engine: Engine,
    database: sessionmaker[Session],
    storage: Storage,
    settings: Settings,
    images: list[UUID],
) -> None:
    keeper, eye = keeper_of(engine, database, storage, settings)
    assert keeper.go_through(among_all=True) == PICTURES
    assert with_vectors(database) == set(images)
    assert max(eye.portions) == 2
    with database.begin() as session:  # in the middle and at the end
        lost = [images[4], images[-1]]
        session.execute(delete(rows.ImageVector).where(rows.ImageVector.image_id.in_(lost)))
    assert keeper.go_through(among_all=True) == 2
    assert with_vectors(database) == set(images)
    assert keeper.go_through(among_all=True) == 0


def test_a_quick_look_is_at_the_newest(
    *,
    engine: Engine,
    database: sessionmaker[Session],
    storage: Storage,
    settings: Settings,
    images: list[UUID],
) -> None:
    keeper, _ = keeper_of(engine, database, storage, settings)
    assert keeper.go_through(among_all=False) == 3
    assert with_vectors(database) == set(images[:3])


def test_while_there_is_much_to_do_the_newest_are_begun_with_again(
    *,
    engine: Engine,
    database: sessionmaker[Session],
    storage: Storage,
    settings: Settings,
    images: list[UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embed_pictures, "_ANEW_AFTER", 4)
    keeper, _ = keeper_of(engine, database, storage, settings)
    keeper.go_through(among_all=True)
    assert with_vectors(database) < set(images)
    with database.begin() as session:
        session.execute(delete(rows.ImageVector).where(rows.ImageVector.image_id == images[0]))
    keeper.go_through(among_all=True)
    assert images[0] in with_vectors(database)
    keeper.go_through(among_all=True)
    assert with_vectors(database) == set(images)
