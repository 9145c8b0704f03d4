"""Models that embed text and images, loaded on threads of their own."""

import importlib.util
import io
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image

from shared.core.logging import get_logger
from shared.core.settings import Settings
from shared.search.embeddings import embedding_source

log = get_logger(__name__)
M = TypeVar("M")

_PAUSE_SECONDS = 10.0
"""After a load that failed: to try takes seconds of a core."""


class ModelNotLoaded(Exception):
    """There is no embedding for now; the text says why and may reach a client."""


class Loading(Generic[M]):
    """Begins to load at once; whoever needs the model waits for it as long as it likes.

    A failure may pass, so the first who asks at least `pause` seconds later has it tried again.
    """

    def __init__(self, name: str, load: Callable[[], M], pause: float = _PAUSE_SECONDS) -> None:
        self._name = name
        self._make = load
        self._pause = pause
        self._again_at = 0.0
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._model: M | None = None
        self._begin()

    def wait(self, seconds: float | None) -> M:
        """The model, when it is loaded.

        Raises:
            ModelNotLoaded: it cannot be, or is not after `seconds`; it says which.
        """
        with self._lock:
            failed = self._done.is_set() and self._model is None
            if failed and time.monotonic() >= self._again_at:
                self._done.clear()
                self._begin()
        if not self._done.wait(seconds):
            raise ModelNotLoaded("The CPU worker is still loading the embedding model.")
        if self._model is None:
            raise ModelNotLoaded(f"The CPU worker cannot load the embedding model {self._name}.")
        return self._model

    def _begin(self) -> None:
        threading.Thread(target=self._load, name=f"load-{self._name}", daemon=True).start()

    def _load(self) -> None:
        try:
            self._model = self._make()
            log.info("embedding_model_ready", model=self._name)
        except Exception:  # whatever a library raises, queries must be told
            log.exception("embedding_model_failed", model=self._name)
        finally:
            self._again_at = time.monotonic() + self._pause
            self._done.set()


_preloaded: dict[str, Any] = {}


def preload(settings: Settings) -> None:
    """Load the model of the settings, if it is on this disk, for processes that this one forks.

    They share its memory. It starts no thread, because a fork has none but its own.
    """
    _import()
    source = embedding_source(settings)
    if not Path(source).is_dir():
        return
    import torch
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # or a thread looks after the bar that is drawn for no one
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _preloaded[source] = _load(source)
    finally:
        torch.set_num_threads(threads)


def _import() -> Any:
    # scikit-learn would import pandas, and that pyarrow, where they are: 40 MB and a thread that
    # nobody here needs. Only `datasets`, which is imported where it is, cannot do without.
    without = "pandas" not in sys.modules and importlib.util.find_spec("datasets") is None
    if without:
        sys.modules["pandas"] = None  # type: ignore[assignment]
    try:
        import sentence_transformers
    finally:
        if without:
            del sys.modules["pandas"]
    return sentence_transformers


def _load(source: str) -> Any:
    if (model := _preloaded.pop(source, None)) is not None:
        return model
    return _import().SentenceTransformer(
        source,
        device="cpu",
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},  # a pickle would run what it holds
    )


class Embedder:
    """The embedding model of this process. Thread-safe: one call at a time."""

    def __init__(self, settings: Settings, former: str | None = None) -> None:
        """`former`: a model that was in use before; the settings no longer know its dimension."""
        if former is not None:
            settings = settings.model_copy(update={"embedding_model": former})
        self.model_name = settings.embedding_model
        self._lock = threading.Lock()
        self._model = _load(embedding_source(settings))
        size = self._model.get_embedding_dimension()
        if former is None and size != settings.embedding_dimensions:
            raise ValueError(
                f"{self.model_name} gives vectors of {size} numbers, "
                f"but DARKROOM_EMBEDDING_DIMENSIONS is {settings.embedding_dimensions}"
            )

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector for each text, float32, in order; zeros where it knows no part of it.

        A vector for unknown parts would make all unknown texts match each other.
        """
        with self._lock:
            known = [self._known_parts(text) for text in texts]
            vectors = self._model.encode(known, normalize_embeddings=True, show_progress_bar=False)
        return [
            [float(number) if said else 0.0 for number in vector]
            for vector, said in zip(vectors, known, strict=True)
        ]

    def _known_parts(self, text: str) -> str:
        tokenizer = self._model.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        if text.isascii() or unknown is None or not getattr(tokenizer, "is_fast", False):
            return text
        tokens = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False
        )
        places = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        gaps = [place for token, place in places if token == unknown]
        if len(gaps) == len(tokens["input_ids"]):
            return ""
        for start, end in reversed(gaps):
            text = f"{text[:start]} {text[end:]}"
        return text


class ImageEmbedder:
    """The image-text model of this process. Thread-safe: one call at a time."""

    def __init__(self, model_name: str, dimensions: int) -> None:
        """Loads it, which takes seconds.

        Raises:
            ValueError: its vectors have another length than the settings say.
        """
        self.model_name = model_name
        self._lock = threading.Lock()
        self._model = _load(model_name)
        [vector] = self.embed([Image.new("RGB", (64, 64))])
        if len(vector) != dimensions:
            raise ValueError(
                f"{self.model_name} gives vectors of {len(vector)} numbers, "
                f"but DARKROOM_IMAGE_EMBEDDING_DIMENSIONS is {dimensions}"
            )

    def embed(self, images: Sequence[Image.Image]) -> list[list[float]]:
        """One unit vector for each RGB image of any size, float32, in order."""
        with self._lock:
            vectors = self._model.encode(
                list(images), normalize_embeddings=True, show_progress_bar=False
            )
        return [[float(number) for number in vector] for vector in vectors]


def load_image_embedding_model(settings: Settings) -> Loading[ImageEmbedder] | None:
    """Begin to load the configured model; None without one."""
    name, dimensions = settings.image_embedding_model, settings.image_embedding_dimensions
    if name is None:
        return None
    return Loading(name, lambda: ImageEmbedder(name, dimensions))


def open_small(data: bytes) -> Image.Image:
    """A thumbnail or a cleaned image as RGB.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")) as image:
            return image.convert("RGB")
    except Exception as error:  # at damaged files Pillow raises SyntaxError, ValueError and others
        raise OSError("The image cannot be read.") from error
