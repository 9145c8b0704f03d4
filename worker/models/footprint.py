"""What a model's weights will take, before it was ever loaded here: the size of its files."""

from pathlib import Path

from shared.model_catalog import ModelSpec
from worker.engine.simulated import SOURCE_PREFIX, SimulatedSpeed


def expected_bytes(spec: ModelSpec) -> int:
    """Bytes of the checkpoint's weights on disk; 0 where they are not on this machine yet.

    A guess: weights may be converted on loading. Once loaded, what was measured counts.
    """
    if spec.source.startswith(SOURCE_PREFIX):
        return int(SimulatedSpeed.from_source(spec.source).memory_bytes)
    folder = Path(spec.source)
    if not folder.is_dir():
        return 0
    found = list(folder.glob(f"*/*.{spec.variant}.safetensors")) if spec.variant else []
    return sum(path.stat().st_size for path in found or folder.glob("*/*.safetensors"))
