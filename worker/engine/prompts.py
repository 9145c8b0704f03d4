"""Turn texts into what the UNet reads, once per text, and say what was cut off."""

import copy
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

_KEPT_TEXTS = 256
"""Embeddings kept: 0.3 MB each at SDXL's width in half precision."""


@dataclass(frozen=True)
class TextEmbedding:
    """One text as the UNet reads it."""

    tokens: torch.Tensor
    """(1, tokens, width)."""
    pooled: torch.Tensor | None
    """(1, width of the second encoder) for SDXL, else None."""

    def zeros(self) -> "TextEmbedding":
        """What SDXL reads for no negative prompt at all."""
        pooled = torch.zeros_like(self.pooled) if self.pooled is not None else None
        return TextEmbedding(torch.zeros_like(self.tokens), pooled)


class PromptEncoder:
    """The text encoders of a Stable Diffusion pipeline, behind a cache of the last 256 texts.

    Each text is encoded by itself, as diffusers does for one prompt, so cached and fresh
    embeddings have the same bits.
    """

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._pipeline = pipeline
        self._device = device
        self._two_encoders = getattr(pipeline, "text_encoder_2", None) is not None
        self._zero_for_none = bool(pipeline.config.get("force_zeros_for_empty_prompt", False))
        self._cache: OrderedDict[str, TextEmbedding] = OrderedDict()

    def encode(self, text: str) -> TextEmbedding:
        """The embedding of a prompt."""
        cached = self._cache.get(text)
        if cached is None:
            cached = self._cache[text] = self._encode(text)
            if len(self._cache) > _KEPT_TEXTS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(text)
        return cached

    def encode_negative(self, text: str | None, prompt: TextEmbedding) -> TextEmbedding:
        """The embedding for the unconditional half; SDXL tells none from an empty one."""
        if text is None and self._two_encoders and self._zero_for_none:
            return prompt.zeros()
        return self.encode(text or "")

    def _encode(self, text: str) -> TextEmbedding:
        encoded = self._pipeline.encode_prompt(
            prompt=text,
            device=self._device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return TextEmbedding(encoded[0], encoded[2] if self._two_encoders else None)


class Truncation:
    """What the tokenizers cut off. It has tokenizers of its own, so any thread may ask."""

    def __init__(self, tokenizers: list[Any]) -> None:
        self._tokenizers = [copy.deepcopy(tokenizer) for tokenizer in tokenizers]
        self._lock = threading.Lock()

    def of(self, prompt: str) -> str | None:
        """The end of the prompt that some encoder does not read, or None."""
        with self._lock:
            parts = [self._cut(tokenizer, prompt) for tokenizer in self._tokenizers]
        return max((part for part in parts if part), key=len, default=None)

    @staticmethod
    def _cut(tokenizer: Any, prompt: str) -> str | None:
        """The last place that is read holds the end-of-text token: what stood there is cut too."""
        limit = int(tokenizer.model_max_length)
        tokens = tokenizer(prompt, truncation=False, return_offsets_mapping=True, verbose=False)
        if len(tokens.input_ids) <= limit:
            return None
        first, _ = tokens.offset_mapping[limit - 1]
        return prompt[first:].strip() or None
