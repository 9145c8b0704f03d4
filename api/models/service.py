"""The catalogue, and who serves it now."""

from collections.abc import Sequence

from api.deps import Resources
from api.models.schemas import Model, ServingWorker
from api.wire import Page
from shared.fleet.announcement import WorkerAnnouncement
from shared.model_catalog import ModelSpec
from shared.schedulers import SCHEDULERS


async def list_models(resources: Resources) -> Page[Model]:
    """Every declared model, the default first."""
    workers = await resources.roster.workers()
    models = [
        _present(spec, _serving(spec.name, workers), is_default=spec is resources.catalog.default)
        for spec in resources.catalog.model
    ]
    return Page[Model](data=models, has_more=False, next_cursor=None)


def _serving(name: str, workers: Sequence[WorkerAnnouncement] | None) -> list[ServingWorker] | None:
    if workers is None:
        return None
    return [
        ServingWorker(
            name=worker.name,
            state=worker.state,
            model_state=served.state,
            device=worker.device,
            rows=served.rows,
            content_hash=served.content_hash,
        )
        for worker in workers
        for served in worker.models
        if served.name == name
    ]


def _present(spec: ModelSpec, workers: list[ServingWorker] | None, is_default: bool) -> Model:
    return Model(
        name=spec.name,
        default=is_default,
        default_width=spec.default_width,
        default_height=spec.default_height,
        max_width=spec.max_width,
        max_height=spec.max_height,
        default_steps=spec.default_steps,
        max_steps=spec.max_steps,
        default_guidance_scale=spec.default_guidance_scale,
        default_scheduler=spec.scheduler,
        schedulers=list(SCHEDULERS),
        served=None if workers is None else any(w.model_state != "broken" for w in workers),
        workers=workers,
    )
