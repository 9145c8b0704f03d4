"""Stars and deletions: rows, objects and vectors go, and the answer says what went."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from shared.core import tenants
from shared.core.database import open_engine, session_factory
from shared.core.errors import StorageUnavailable
from shared.core.ids import decode_id, encode_id
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.images import deletion as image_deletion
from shared.images import models as image_models
from shared.jobs.models import Job, JobAttempt
from tests.conftest import MIGRATED
from tests.images import data_url, png
from tests.integration.search.conftest import Team
from tests.integration.search.gallery import any_vector, insert_image
from tests.jobs import accept
from tests.processes import WorkerProcess, wait_until
from worker.maintenance.cleanup import Cleanup

JOB = {"model": "sim", "width": 64, "height": 64, "steps": 2}


@pytest.fixture
def make(team: Team, generate_worker: WorkerProcess) -> Any:
    """Has a worker make images; gives the finished job."""

    def submit(prompt: str, **fields: Any) -> dict[str, Any]:
        body = {**JOB, "prompt": prompt, **fields}
        answer = team.http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
        job: dict[str, Any] = answer.json()
        assert job["state"] == "succeeded", answer.text
        return job

    return submit


@pytest.fixture
def cleanup(settings: Settings, database: sessionmaker[Session], storage: Storage) -> Cleanup:
    """The leader's, which the tests run themselves."""
    return Cleanup(settings, database, storage)


def left(team: Team) -> tuple[int, int, int]:
    """(jobs, images, prompts) of the tenant on record."""
    with team.database() as session:
        counts = [
            session.scalar(
                select(func.count()).select_from(table).where(table.tenant_id == team.tenant_id)
            )
            for table in (Job, image_models.Image, image_models.Prompt)
        ]
    return tuple(counts)  # type: ignore[return-value]


def gone(**counts: int) -> dict[str, Any]:
    """An answer."""
    nothing = {"sessions": 0, "jobs": 0, "images": 0, "prompts": 0, "uploads": 0, "objects": 0}
    return {**nothing, **counts, "objects_pending": False}


def test_a_star_comes_and_goes(team: Team) -> None:
    path = f"/v1/images/{team.add('a boat', meaning=False)}/star"
    for _ in range(2):
        assert team.http.put(path).json()["starred"] is True
    assert team.http.get(path.removesuffix("/star")).json()["starred"] is True
    for _ in range(2):
        assert team.http.delete(path).json()["starred"] is False
    assert team.http.put("/v1/images/img_x/star").status_code == 404


def test_an_image_goes_with_its_files_and_its_prompt_with_the_last(
    team: Team, make: Any, storage: Storage, cleanup: Cleanup
) -> None:
    job = make("a red lighthouse", num_images=2)
    folder = f"default/{job['id']}/"
    first, second = job["images"]
    assert len(storage.list_keys(folder)) == 4
    aside = gone(images=1) | {"objects_pending": True}
    assert team.http.delete(f"/v1/images/{first['id']}").json() == aside
    pass_a_minute(team, cleanup)
    assert len(storage.list_keys(folder)) == 2
    assert [hit["image"]["id"] for hit in team.search("a lighthouse")["data"]] == [second["id"]]
    assert team.http.delete(f"/v1/images/{second['id']}").json() == aside
    assert team.search("a lighthouse")["data"] == []
    assert left(team) == (1, 0, 1)
    pass_a_minute(team, cleanup)
    assert storage.list_keys(folder) == []
    assert left(team) == (1, 0, 0)
    assert team.search("a lighthouse")["data"] == []
    assert team.http.delete(f"/v1/images/{first['id']}").status_code == 404
    assert team.http.get(f"/v1/jobs/{job['id']}").json()["images"] == []
    assert team.http.post(f"/v1/images/{first['id']}/restore").status_code == 404


def test_an_image_is_restored_as_it_was_for_a_minute(
    team: Team, make: Any, storage: Storage, cleanup: Cleanup
) -> None:
    job = make("a red lighthouse")
    path = f"/v1/images/{job['images'][0]['id']}"
    team.http.put(f"{path}/star").raise_for_status()
    facts = unsigned(team.http.get(path).json())
    reproduced = team.http.post(f"{path}/reproduce", headers={"Prefer": "wait=60"}).json()
    again = f"/v1/images/{reproduced['image']['id']}"
    for _ in range(2):
        assert team.http.delete(path).status_code == 200
        assert team.http.get(path).status_code == 404
        assert team.http.get(f"{path}/content").status_code == 404
        assert team.http.delete(path).status_code == 404
        cleanup.purge_deleted_images()  # too early
        for _ in range(2):  # the second time it is there already
            restored = team.http.post(f"{path}/restore")
            assert (restored.status_code, unsigned(restored.json())) == (200, facts)
    assert [hit["image"]["id"] for hit in team.search("a lighthouse")["data"]] == [facts["id"]]
    assert team.http.get(f"{path}/content?proxy=1").status_code == 200
    with team.database() as session:
        prompt = session.scalars(
            select(image_models.Prompt.deleted_images).where(
                image_models.Prompt.tenant_id == team.tenant_id
            )
        ).one()
    assert prompt == 0
    assert team.http.get(again).status_code == 200
    team.http.delete(path).raise_for_status()
    team.http.delete(again).raise_for_status()
    team.http.delete(f"/v1/jobs/{job['id']}").raise_for_status()
    assert team.http.post(f"{path}/restore").status_code == 404
    pass_a_minute(team, cleanup)
    assert left(team)[1:] == (0, 0)


def test_nobody_restores_another_tenant_s_image(team: Team, landscapes: Team) -> None:
    image = landscapes.add("a hill", meaning=False)
    assert landscapes.http.delete(f"/v1/images/{image}").status_code == 200
    assert team.http.post(f"/v1/images/{image}/restore").status_code == 404
    assert landscapes.http.post(f"/v1/images/{image}/restore").status_code == 200
    # Others search these landscapes, too.
    assert landscapes.http.delete(f"/v1/images/{image}").status_code == 200


def unsigned(image: dict[str, Any]) -> dict[str, Any]:
    """Without its URLs, which differ each time."""
    return {name: value for name, value in image.items() if "url" not in name}


def pass_a_minute(team: Team, cleanup: Cleanup) -> None:
    """Let what was deleted be older, and purge it."""
    with team.database.begin() as session:
        session.execute(
            update(image_models.DeletedImage)
            .where(image_models.DeletedImage.tenant_id == team.tenant_id)
            .values(deleted_at=func.statement_timestamp() - timedelta(seconds=66))
        )

    def is_purged() -> bool:
        cleanup.purge_deleted_images()  # so many as a round has time for
        return count_deleted(team.database, team.tenant_id) == 0

    wait_until(is_purged, what="the end of what was deleted")


def count_deleted(database: sessionmaker[Session], tenant: UUID) -> int:
    """Images of a tenant that can be restored or will be purged."""
    table = image_models.DeletedImage
    counted = select(func.count()).select_from(table).where(table.tenant_id == tenant)
    with database() as session:
        return session.scalar(counted) or 0


@pytest.fixture
def undisturbed(servers: EmbeddedServers, settings: Settings) -> Iterator[sessionmaker[Session]]:
    """A database in which no leader purges anything."""
    url = servers.postgres.create_database("undisturbed", template=MIGRATED)
    engine = open_engine(Settings(**{**settings.model_dump(), "database_url": url}))
    yield session_factory(engine)
    engine.dispose()
    servers.postgres.drop_database("undisturbed")


class Failing(Storage):
    """S3 goes away behind the first listing."""

    is_away = False

    def list_keys(self, prefix: str) -> list[str]:
        if self.is_away:
            raise StorageUnavailable("it is away")
        self.is_away = True
        return super().list_keys(prefix)


def test_what_was_purged_before_an_outage_or_the_deadline_is_not_purged_again(
    settings: Settings, undisturbed: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader's other tasks wait for a round."""
    with undisturbed.begin() as session:
        tenant = session.scalars(tenants.ensure_tenant("t")).one()
        for number, prompt in enumerate(("a dam", "a mill", "a ford")):
            image = insert_image(session, tenant, prompt, any_vector(number))
            session.execute(image_deletion.delete_image(tenant, image))
        session.execute(update(image_models.DeletedImage).values(deleted_at=func.to_timestamp(0)))
    assert count_deleted(undisturbed, tenant) == 3
    storage = Failing(settings)
    cleanup = Cleanup(settings, undisturbed, storage)
    with pytest.raises(StorageUnavailable):
        cleanup.purge_deleted_images()
    assert count_deleted(undisturbed, tenant) == 2
    storage.is_away = False
    monkeypatch.setattr("worker.maintenance.cleanup._ORPHAN_SECONDS", -1)
    assert cleanup.purge_deleted_images() == 1
    assert count_deleted(undisturbed, tenant) == 1
    storage.close()


def test_a_job_goes_with_everything_of_it(team: Team, make: Any, storage: Storage) -> None:
    job, other = make("a green lighthouse"), make("a green lighthouse", seed=5)
    stray = f"default/{job['id']}/9/00.png"
    storage.put(stray, b"of an attempt that failed", "image/png")
    answer = team.http.delete(f"/v1/jobs/{job['id']}")
    assert answer.json() == gone(jobs=1, images=1, objects=3)
    assert storage.list_keys(f"default/{job['id']}/") == []
    assert left(team) == (1, 1, 1)
    assert team.http.get(f"/v1/jobs/{job['id']}").status_code == 404
    with team.database() as session:
        attempts = select(JobAttempt).where(JobAttempt.job_id == decode_id("job", job["id"]))
        assert session.scalars(attempts).all() == []
    answer = team.http.delete(f"/v1/jobs/{other['id']}")
    assert answer.json() == gone(jobs=1, images=1, prompts=1, objects=2)
    assert left(team) == (0, 0, 0)


def test_what_waits_or_runs_is_not_deleted(team: Team) -> None:
    with team.database.begin() as session:
        job = accept(session, team.tenant_id, session_id="busy", model="nobodys")
    for path in (f"/v1/jobs/{encode_id('job', job.id)}", "/v1/sessions/busy"):
        refused = team.http.delete(path)
        assert (refused.status_code, refused.json()["code"]) == (409, "job_not_finished")
    team.http.post(f"/v1/jobs/{encode_id('job', job.id)}/cancel").raise_for_status()
    assert team.http.delete("/v1/sessions/busy").json() == gone(sessions=1, jobs=1)


def test_an_upload_goes_once_nothing_waits_for_it(team: Team, make: Any, storage: Storage) -> None:
    job = make("the same at night", init_image=data_url(png("grey")), strength=0.9)
    upload = job["init_image"]
    source = {"ref": upload, "s3_key": f"_uploads/{upload}.png", "sha256": "0" * 64}
    with team.database.begin() as session:
        waiting = accept(session, team.tenant_id, model="nobodys", init_image=source)
    refused = team.http.delete(f"/v1/uploads/{upload}")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_finished")
    team.http.post(f"/v1/jobs/{encode_id('job', waiting.id)}/cancel").raise_for_status()
    answer = team.http.delete(f"/v1/uploads/{upload}")
    assert answer.json() == gone(uploads=1, objects=1)
    assert storage.list_keys(f"_uploads/{upload}") == []
    for method in ("GET", "DELETE"):
        assert team.http.request(method, f"/v1/uploads/{upload}").status_code == 404
    again = team.http.post("/v1/jobs", json={**JOB, "prompt": "x", "init_image": upload})
    assert again.status_code == 404
    assert len(team.http.get(f"/v1/jobs/{job['id']}").json()["images"]) == 1


def test_an_image_that_a_waiting_job_starts_from_stays(team: Team) -> None:
    """Nothing that was accepted fails because somebody tidied up."""
    image = team.add("a boat", meaning=False, session_id="boats")
    with team.database.begin() as session:
        row = session.get_one(image_models.Image, decode_id("img", image))
        source = {"ref": image, "s3_key": row.s3_key, "sha256": row.sha256}
        waiting = accept(session, team.tenant_id, model="nobodys", init_image=source)
        job = encode_id("job", row.job_id)
    paths = (f"/v1/images/{image}", f"/v1/jobs/{job}", "/v1/sessions/boats")
    for path in paths:
        refused = team.http.delete(path)
        assert (refused.status_code, refused.json()["code"]) == (409, "job_not_finished")
        assert "start" in refused.json()["detail"]
    assert team.http.get(paths[0]).status_code == 200
    team.http.post(f"/v1/jobs/{encode_id('job', waiting.id)}/cancel").raise_for_status()
    assert team.http.delete(paths[0]).status_code == 200


def test_a_session_goes_with_everything_in_it(team: Team, make: Any, storage: Storage) -> None:
    kept = make("a white lighthouse", session_id="kept")
    for seed in range(3):
        make("a blue lighthouse", session_id="gone", seed=seed)
    make("a white lighthouse", session_id="gone")
    answer = team.http.delete("/v1/sessions/gone")
    assert answer.json() == gone(sessions=1, jobs=4, images=4, prompts=1, objects=8)
    assert left(team) == (1, 1, 1)
    assert team.http.get("/v1/sessions/gone").status_code == 404
    assert team.http.delete("/v1/sessions/gone").status_code == 404
    assert len(storage.list_keys(f"kept/{kept['id']}/")) == 2
    again = make("a blue lighthouse", session_id="gone")
    assert again["images"]


def test_another_tenant_s_things_are_not_there(team: Team, landscapes: Team) -> None:
    image = landscapes.search("mountains")["data"][0]["image"]
    for path in (f"/v1/images/{image['id']}", f"/v1/jobs/{image['job_id']}", "/v1/sessions/odd"):
        assert team.http.delete(path).status_code == 404
    assert team.http.put(f"/v1/images/{image['id']}/star").status_code == 404


def test_what_storage_did_not_take_is_swept(
    team: Team, settings: Settings, storage: Storage, database: sessionmaker[Session]
) -> None:
    """As it is left when a process dies between the rows and the objects."""
    storage.put("swept/job_1/1/00.png", b"x", "image/png")
    storage.put("swept/job_1/1/00.thumb.webp", b"x", "image/webp")
    storage.put("swept/job_12/1/00.png", b"another job's", "image/png")
    with database.begin() as session:
        session.execute(image_deletion.schedule_deletions(team.tenant_id, ["swept/job_1/"]))
    cleanup = Cleanup(settings, database, storage)
    cleanup.sweep_pending_deletions(timedelta(hours=1))
    assert len(storage.list_keys("swept/")) == 3
    cleanup.sweep_pending_deletions(timedelta(0))
    assert storage.list_keys("swept/") == ["swept/job_12/1/00.png"]
    with database() as session:
        assert session.execute(image_deletion.list_pending_deletions(timedelta(0), 10)).all() == []


@pytest.mark.parametrize("rounds", [3, pytest.param(12, marks=pytest.mark.long)])
def test_a_session_that_is_deleted_while_jobs_come_into_it(team: Team, rounds: int) -> None:
    """Neither side breaks: each submission is accepted, each deletion done or refused."""
    submitters = 3
    start = Barrier(submitters + 1)

    def submit(_: int) -> list[int]:
        codes = []
        with httpx2.Client(
            base_url=team.http.base_url, headers=team.http.headers, timeout=60
        ) as http:
            for _round in range(rounds):
                start.wait(30)
                body = {"prompt": "a boat", **JOB, "session_id": "brief"}
                answer = http.post("/v1/jobs", json=body)
                codes.append(answer.status_code)
                http.post(f"/v1/jobs/{answer.json().get('id')}/cancel")
        return codes

    deletions: list[int] = []
    with ThreadPoolExecutor(submitters) as threads:
        submissions = [threads.submit(submit, number) for number in range(submitters)]
        for _ in range(rounds):
            start.wait(30)
            deletions += [team.http.delete("/v1/sessions/brief").status_code for _ in range(4)]
        codes = [code for submission in submissions for code in submission.result()]
    assert codes == [202] * (rounds * submitters)
    assert set(deletions) <= {200, 404, 409}
