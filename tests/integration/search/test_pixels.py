"""Search by an image's pixels, with a real image-text model of toy size (random weights).

Random weights know nothing of cats, but images that look alike have like vectors all the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from PIL import Image, ImageDraw
from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from shared.core.database import open_engine, session_factory
from shared.core.ids import encode_id
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.tenants import RESOURCES, Tenant
from shared.images import models as image_models
from shared.search.embeddings import IMAGES
from shared.search.query import Phase
from tests.conftest import MIGRATED
from tests.images import encode
from tests.integration.search.gallery import any_vector, insert_image
from tests.processes import (
    PROJECT,
    QUICK_WORKER,
    ApiProcess,
    WorkerProcess,
    free_port,
    together,
    wait_until,
)

DIMENSIONS = 24
TOKENIZER = PROJECT / "deploy/demo_model/checkpoint/tokenizer"
SCENES = {
    "sunset": ((250, 120, 40), (60, 20, 60)),
    "sunset, later": ((240, 112, 44), (56, 20, 62)),
    "meadow": ((120, 180, 240), (40, 160, 50)),
    "night": ((10, 10, 40), (4, 4, 12)),
    "snow": ((230, 240, 250), (250, 250, 255)),
}
LOST = "its file is lost"


def paint(name: str) -> Image.Image:
    """Sky over land."""
    sky, land = SCENES[name]
    image = Image.new("RGB", (96, 64), sky)
    ImageDraw.Draw(image).rectangle((0, 40, 96, 64), fill=land)
    return image


@dataclass
class Studio:
    """A system of its own whose operator has configured an image-text model."""

    http: httpx2.Client
    database: sessionmaker[Session]
    tenant_id: UUID
    images: dict[str, str]
    model: str

    def like(self, name: str, **parameters: Any) -> list[tuple[str, float]]:
        """(prompt, score) of images like one of ours."""
        answer = self.http.post(
            "/v1/search", params=parameters, json={"image_id": self.images[name]}
        )
        assert answer.status_code == 200, answer.text
        return [(hit["prompt"], hit["score"]) for hit in answer.json()["data"]]


@pytest.fixture(scope="module")
def toy_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP checkpoint, one layer deep."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizerFast,
    )

    torch.manual_seed(0)
    layers = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    config = CLIPConfig(
        text_config={**layers, "vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**layers, "image_size": 32, "patch_size": 8},
        projection_dim=DIMENSIONS,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizerFast.from_pretrained(
        PROJECT / "deploy/demo_model/checkpoint/tokenizer"
    )
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def studio(
    *,
    servers: EmbeddedServers,
    settings: Settings,
    environment: dict[str, str],
    storage: Storage,
    toy_clip: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Studio]:
    """Its images are on record before its CPU worker starts, which has to catch up."""
    url = servers.postgres.create_database("images", template=MIGRATED)
    own = {
        **environment,
        "DARKROOM_DATABASE_URL": url,
        "DARKROOM_REDIS_URL": servers.redis_url.removesuffix("/0") + "/1",
        "DARKROOM_IMAGE_EMBEDDING_MODEL": str(toy_clip),
        "DARKROOM_IMAGE_EMBEDDING_DIMENSIONS": str(DIMENSIONS),
    }
    engine = open_engine(Settings(**{**settings.model_dump(), "database_url": url}))
    database = session_factory(engine)
    key = create_key(url, tenant="studio", name="studio", scopes=RESOURCES)
    images = {}
    with database.begin() as session:
        tenant_id = session.scalars(select(Tenant.id)).one()
        for number, name in enumerate([*SCENES, LOST]):
            thumbnail = f"studio/{name}.thumb.webp"
            if name != LOST:
                storage.put(thumbnail, encode(paint(name), "WEBP", lossless=True), "image/webp")
            image_id = insert_image(
                session,
                tenant_id,
                name,
                any_vector(number),
                session_id="warm" if "sunset" in name else "cold",
                thumbnail_s3_key=thumbnail,
            )
            images[name] = encode_id("img", image_id)
    logs = tmp_path_factory.mktemp("logs")
    api = ApiProcess(own, free_port(), key, logs / "api.log")
    with together(api, WorkerProcess(own, ["cpu"], logs / "cpu.log", module=QUICK_WORKER)):
        yield Studio(api.http, database, tenant_id, images, str(toy_clip))
    engine.dispose()
    servers.postgres.drop_database("images")


@pytest.fixture(scope="module")
def caught_up(studio: Studio) -> Studio:
    """When every image has been looked at, and the index is there."""

    def looked_at() -> bool:
        with studio.database() as session:
            seen = session.scalar(select(func.count()).select_from(image_models.ImageVector))
            indexes = {name for name, valid in session.execute(IMAGES.list()) if valid}
        return seen == len(SCENES) + 1 and indexes == {IMAGES.name(studio.model, DIMENSIONS)}

    wait_until(looked_at, 90, "the vectors of all images")
    return studio


@pytest.mark.long
def test_a_file_finds_the_images_that_look_like_it(caught_up: Studio) -> None:
    for name in SCENES:
        file = {"file": ("mine.png", encode(paint(name)))}
        answer = caught_up.http.post("/v1/search", files=file)
        assert answer.status_code == 200, answer.text
        hits = answer.json()["data"]
        assert hits[0]["prompt"] == name
        assert hits[0]["score"] > 0.99
        assert [hit["score"] for hit in hits] == sorted((h["score"] for h in hits), reverse=True)


def test_an_image_of_ours_finds_its_like_but_not_itself(caught_up: Studio) -> None:
    found = caught_up.like("sunset")
    assert found[0][0] == "sunset, later"
    assert "sunset" not in [prompt for prompt, _ in found]


def test_no_image_is_lost_even_without_a_vector(caught_up: Studio) -> None:
    found = caught_up.like("sunset")
    assert {prompt for prompt, _ in found} == {*SCENES, LOST} - {"sunset"}
    assert found[-1] == (LOST, 0.0)


def test_an_image_that_is_gone_and_was_never_looked_at_stands_for_its_prompt(
    caught_up: Studio,
) -> None:
    with caught_up.database.begin() as session:
        session.execute(
            delete(image_models.ImageVector).where(
                image_models.ImageVector.image_id == _row_id(caught_up, LOST)
            )
        )
    found = [prompt for prompt, _ in caught_up.like(LOST)]
    assert sorted(found) == sorted(SCENES)


def test_filters_pages_and_a_lowest_score(caught_up: Studio) -> None:
    warm = caught_up.like("sunset", session_id="warm")
    assert [prompt for prompt, _ in warm] == ["sunset, later"]
    everything = caught_up.like("night")
    assert [prompt for prompt, _ in caught_up.like("night", min_score=everything[1][1])] == [
        prompt for prompt, _ in everything[:2]
    ]
    paged: list[str] = []
    parameters: dict[str, Any] = {"limit": 2}
    while True:
        answer = caught_up.http.post(
            "/v1/search", params=parameters, json={"image_id": caught_up.images["night"]}
        ).json()
        paged += [hit["prompt"] for hit in answer["data"]]
        if not answer["has_more"]:
            break
        parameters["after"] = answer["next_cursor"]
    assert paged == [prompt for prompt, _ in everything]


def test_many_images_go_through_the_index_and_none_is_lost(
    caught_up: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared.search import image_similarity
    from shared.search.ranking import Filters, QueryVector

    monkeypatch.setattr(image_similarity, "CANDIDATES", 2)
    with caught_up.database() as session:
        vector = session.scalars(
            image_similarity.vector_of(
                caught_up.tenant_id, _row_id(caught_up, "snow"), caught_up.model
            )
        ).one()
        asked = image_similarity.SimilarityQuery(
            caught_up.tenant_id, Filters(), QueryVector(caught_up.model, DIMENSIONS, vector)
        )
        session.execute(text("SET LOCAL enable_seqscan = off"))
        few, many, rest = (
            [row[0].id for row in session.execute(image_similarity.page(phase, asked, 10, None))]
            for phase in (Phase.EXACT, Phase.ANN, Phase.FALLBACK)
        )
    assert len(many) == 2
    assert many[0] == few[0] == _row_id(caught_up, "snow")
    assert sorted(many + rest) == sorted(few)


def test_what_is_no_image_is_refused(caught_up: Studio) -> None:
    answer = caught_up.http.post("/v1/search", files={"file": ("a.png", b"not an image")})
    assert (answer.status_code, answer.json()["code"]) == (422, "image_refused")
    nobody = caught_up.http.post("/v1/search", json={"image_id": "img_01jd4zk3v8e0x9m5q7r2t6w8ya"})
    assert nobody.status_code == 404


def test_a_cursor_of_another_image_is_refused(caught_up: Studio) -> None:
    first = caught_up.http.post(
        "/v1/search?limit=1", json={"image_id": caught_up.images["night"]}
    ).json()
    other = caught_up.http.post(
        "/v1/search",
        params={"limit": 1, "after": first["next_cursor"]},
        json={"image_id": caught_up.images["snow"]},
    )
    assert (other.status_code, other.json()["code"]) == (422, "malformed_cursor")


def _row_id(studio: Studio, name: str) -> UUID:
    with studio.database() as session:
        statement = (
            select(image_models.Image.id)
            .join(image_models.Prompt)
            .where(image_models.Prompt.text == name)
        )
        return session.scalars(statement).one()
