"""The real engine: a diffusers checkpoint on a torch device, behind the step loop."""

from typing import Any

from shared.core.errors import ModelUnavailable
from shared.core.model_catalog import ModelSpec
from worker.engine.batched_backend import BatchedBackend
from worker.engine.device import Device, open_device
from worker.engine.families import family_of
from worker.engine.interface import FaultCallback
from worker.engine.loaded import load
from worker.engine.loop import StepLoop


class DiffusionEngine(StepLoop[Any]):
    """The engine for a checkpoint: batched where its family allows, else one image at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        device: str | Device | None = None,
        on_fault: FaultCallback | None = None,
    ) -> None:
        super().__init__(lambda: _open_backend(spec, device), on_fault, spec.tick_budget)


def _open_backend(spec: ModelSpec, device: str | Device | None) -> Any:  # one of two backends
    opened = device if isinstance(device, Device) else open_device(device)
    loaded = load(spec, opened)
    family = family_of(loaded.pipeline)
    if family is None:
        if spec.ip_adapter is not None:
            raise ModelUnavailable(f"Model {spec.name!r} does not support IP-Adapters.")
        from worker.engine.pipeline_backend import PipelineBackend

        return PipelineBackend(loaded)
    return BatchedBackend(loaded, family)
