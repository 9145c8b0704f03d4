"""The GPU: load, warm up, batch, denoise, decode. Importing this package does not import torch."""

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
