"""The GPU: load, warm up, batch, denoise, decode. Importing this package does not import torch."""

import os
from pathlib import Path

from shared.core.model_catalog import ModelSpec
from worker.engine.interface import Engine, FaultCallback
from worker.engine.simulated import SOURCE_PREFIX, SimulatedEngine

# Read when torch loads OpenMP. Threads that spin at a kernel's end steal the cores from encoding,
# uploads and each other: with three busy processes on two cores a small image took 2.2 s
# spinning and 0.07 s sleeping.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _matrix_products() -> str:
    """MKL's strictest way of computing them: on Intel's processors with the same bits at any size;
    others have no such way, and at least the same bits at any place in a batch."""
    try:
        info = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return "AUTO"
    if "GenuineIntel" not in info:
        return "AUTO"
    return next((f"{name},STRICT" for name in ("AVX512", "AVX2") if _FLAG[name] in info), "AUTO")


_FLAG = {"AVX512": " avx512f ", "AVX2": " avx2 "}

# Read at MKL's first call. Without it a matrix product's last bits depend on which thread computes
# which lines, and so a row's bits on its slot in the batch (seen at two rows and two threads).
os.environ.setdefault("MKL_CBWR", _matrix_products())


def open_engine(
    spec: ModelSpec, *, device: str | None = None, on_fault: FaultCallback | None = None
) -> Engine:
    """An engine for the model, not loaded yet.

    Args:
        spec: the model. A source that begins with `simulated:` opens a simulated GPU.
        device: `cpu`, `cuda` or `cuda:n`; None takes CUDA if there is one.
        on_fault: called once, from a thread of the engine's, after the device has failed for good
            and every unfinished future has raised `DeviceLost`. The process should then hand its
            jobs back and exit: no engine in it can continue.
    """
    if spec.source.startswith(SOURCE_PREFIX):
        return SimulatedEngine(spec, on_fault=on_fault)
    from worker.engine.diffusion import DiffusionEngine

    return DiffusionEngine(spec, device=device, on_fault=on_fault)
