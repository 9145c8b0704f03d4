"""Choose the engine that a model needs."""

from shared.core.model_catalog import ModelSpec
from worker.engine.interface import Engine, FaultCallback
from worker.engine.simulated import SOURCE_PREFIX, SimulatedEngine


def open_engine(
    spec: ModelSpec, *, device: str | None = None, on_fault: FaultCallback | None = None
) -> Engine:
    """An engine for the model, not loaded yet.

    Args:
        spec: the model. A source that begins with `simulated:` opens a simulated GPU.
        device: `cpu`, `cuda` or `cuda:n`; None takes CUDA if there is one.
        on_fault: called once, from a thread of the engine's, after the device has failed for good
            and every unfinished future has raised `DeviceLost`. The process should then hand its
            jobs back and exit: no engine in it can go on.
    """
    if spec.source.startswith(SOURCE_PREFIX):
        return SimulatedEngine(spec, on_fault=on_fault)
    from worker.engine.diffusion import DiffusionEngine

    return DiffusionEngine(spec, device=device, on_fault=on_fault)
