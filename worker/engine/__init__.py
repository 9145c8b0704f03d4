"""The GPU: load, warm up, batch, denoise, decode. Importing this package does not import torch."""

import os

from worker.engine.errors import Canceled, EngineClosed
from worker.engine.interface import (
    Engine,
    EngineCounters,
    FaultCallback,
    GeneratedImage,
    ImageRequest,
    Lane,
    ModelFacts,
    RunFacts,
    StepCallback,
    StepUpdate,
    Ticket,
    TickTime,
    WarmUpReport,
)
from worker.engine.opening import open_engine

# Read when torch loads OpenMP. Threads that spin at a kernel's end steal the cores from encoding,
# uploads and each other: with three busy processes on two cores a small picture took 2.2 s
# spinning and 0.07 s sleeping.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Read at MKL's first call. Without it a matrix product's last bits depend on which thread computes
# which lines, and so a row's bits on its slot in the batch (seen at two rows and two threads).
os.environ.setdefault("MKL_CBWR", "AUTO")

__all__ = [
    "Canceled",
    "Engine",
    "EngineClosed",
    "EngineCounters",
    "FaultCallback",
    "GeneratedImage",
    "ImageRequest",
    "Lane",
    "ModelFacts",
    "RunFacts",
    "StepCallback",
    "StepUpdate",
    "TickTime",
    "Ticket",
    "WarmUpReport",
    "open_engine",
]
