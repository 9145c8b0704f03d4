"""What estimates are learnt from: no attempt is passed by, however long it took."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import earliest_id_at
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.jobs.queries import claims, endings
from shared.jobs.queries.estimates import list_finished
from tests.jobs import accept, image_columns

LEASE = timedelta(minutes=1)


def test_a_job_is_evidence_when_it_ends_not_when_its_first_image_was_made(
    ledger: sessionmaker[Session], tenant: UUID
) -> None:
    now = datetime.now(UTC)
    made_at = [now - timedelta(minutes=5), now - timedelta(seconds=1)]
    with ledger.begin() as session:
        job = accept(session, tenant, seeds=[7, 8])
        session.scalars(claims.claim(job.id, "w", "gpu", LEASE)).one()
        session.scalars(endings.succeed(job.id, 1, 5.0)).one()
        embedding = [1.0] + [0.0] * 383
        prompt = image_queries.ensure_prompt(tenant, job.prompt, embedding, "m")
        prompt_id = session.scalars(prompt).one()
        facts = {"prompt_id": prompt_id, "receipt": {"rows": 4, "device": "gpu"}}
        rows = [
            image_columns(job, index, id=earliest_id_at(at), gpu_seconds=2.0 + index, **facts)
            for index, at in enumerate(made_at)
        ]
        session.execute(insert(Image).values(rows))
    with ledger() as session:
        found = session.execute(list_finished(now - timedelta(seconds=30), 10)).all()
    [row] = [row for row in found if row.image_id == rows[1]["id"]]
    assert (row.images, row.rows, row.gpu_seconds) == (2, 4, 2.0)
