"""Pictures to unit vectors, with a sentence-transformers image-text model, imported late."""

import io
import threading
from collections.abc import Sequence
from typing import Any

from PIL import Image

from shared.settings import Settings
from worker.embedding.loading import Loading


class PictureEmbedder:
    """The image-text model of this process. Thread-safe: one call at a time."""

    def __init__(self, model_name: str, dimensions: int) -> None:
        """Loads it, which takes seconds.

        Raises:
            ValueError: its vectors have another length than the settings say.
        """
        self.model_name = model_name
        self._lock = threading.Lock()
        self._model = self._load(dimensions)

    def embed(self, pictures: Sequence[Image.Image]) -> list[list[float]]:
        """One unit vector for each RGB picture of any size, float32, in order."""
        with self._lock:
            vectors = self._model.encode(
                list(pictures), normalize_embeddings=True, show_progress_bar=False
            )
        return [[float(number) for number in vector] for vector in vectors]

    def _load(self, dimensions: int) -> Any:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            self.model_name,
            device="cpu",
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},  # a pickle would run what it holds
        )
        [vector] = model.encode([Image.new("RGB", (64, 64))], show_progress_bar=False)
        if len(vector) != dimensions:
            raise ValueError(
                f"{self.model_name} gives vectors of {len(vector)} numbers, "
                f"but DARKROOM_PICTURE_DIMENSIONS is {dimensions}"
            )
        return model


def load_picture_model(settings: Settings) -> Loading[PictureEmbedder] | None:
    """Begin to load the configured model; None without one."""
    name, dimensions = settings.picture_model, settings.picture_dimensions
    if name is None:
        return None
    return Loading(name, lambda: PictureEmbedder(name, dimensions))


def open_small(data: bytes) -> Image.Image:
    """A thumbnail or a cleaned picture as RGB.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")) as image:
            return image.convert("RGB")
    except Exception as error:  # at damaged files Pillow raises SyntaxError, ValueError and others
        raise OSError("The picture cannot be read.") from error
