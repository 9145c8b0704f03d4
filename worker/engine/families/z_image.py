"""Z-Image and Z-Image-Turbo."""

import math
from collections.abc import Hashable, Mapping
from typing import Any, cast

import torch

from worker.engine.backend import Shape
from worker.engine.families.base import POSITIVE, Pass
from worker.engine.families.flow import FlowFamily
from worker.engine.interface import ImageRequest
from worker.engine.prompts import Reader
from worker.engine.row import Half, Row, Tensors

_BUCKET = 32
"""Tokens; the transformer pads texts to a multiple of it, and to the longest in its batch."""


class ZImage(FlowFamily):
    """Lists of texts; latents in float32; a velocity of the other sign."""

    name = "z-image"
    guided_passes = (("positive", "negative"),)
    float32_latents = True
    host_inputs = frozenset({"length"})
    shared_modules = ("all_x_embedder.", "cap_embedder.")  # all tokens in one line
    capturable = False  # texts are cut to their lengths on the host

    def guided(self, request: ImageRequest) -> bool:
        """Its scale counts from 0."""
        return request.guidance_scale > 0

    def variant(self, request: ImageRequest, rows: int) -> Hashable:
        lengths = [self._length(self.text(request, half)) for half in self.halves(request)]
        return tuple(math.ceil(length / _BUCKET) * _BUCKET for length in lengths)

    def passes(self, shape: Shape) -> tuple[Pass, ...]:
        return self.guided_passes if _buckets(shape)[1:] else POSITIVE

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        """The text with room for the longest of its shape, and its length."""
        tokens = self.embedding(request, half)["tokens"]
        missing = max(_buckets(shape)) - tokens.shape[1]
        length = torch.tensor([tokens.shape[1]])
        return {"tokens": torch.nn.functional.pad(tokens, (0, 0, 0, missing)), "length": length}

    def sigmas(self, request: ImageRequest) -> Any:
        """Evenly spaced in float32."""
        return torch.linspace(1.0, 1 / request.steps, request.steps).tolist()

    def dynamic(self, row: Row, timestep: torch.Tensor) -> Tensors:
        """Its time runs from noise at 0 to the image at 1."""
        return {"sample": row.latents, "timestep": (1000 - timestep.reshape(1)) / 1000}

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        """One call of the transformer over lists of images and texts."""
        images = list(inputs["sample"].to(self.dtype).unsqueeze(2).unbind(0))
        lengths = inputs["length"].tolist()
        texts = [
            tokens[: max(length, 1)]
            for tokens, length in zip(inputs["tokens"], lengths, strict=True)
        ]
        outputs = network(images, inputs["timestep"], texts, return_dict=False)[0]
        return torch.stack(outputs, dim=0).squeeze(2)

    def combine(self, row: Row, outputs: Mapping[Half, torch.Tensor]) -> torch.Tensor:
        """From the positive half away from the negative one, in float32."""
        positive = outputs["positive"].float()
        if "negative" not in outputs:
            return -positive
        return -(positive + self.guidance(row.request) * (positive - outputs["negative"].float()))

    def _length(self, text: str) -> int:
        tokenizer = self.pipeline.tokenizer
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        ids = tokenizer(whole, max_length=self.text_tokens, truncation=True).input_ids
        return len(ids)

    def readers(self) -> list[Reader]:
        """The template takes part of the places."""
        return [(self.pipeline.tokenizer, self.text_tokens - self._length(""))]

    def encode(self, text: str, half: Half) -> Tensors:
        (tokens,), _ = self.pipeline.encode_prompt(
            prompt=text,
            device=self.encode_device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_tokens,
        )
        return {"tokens": tokens[None]}


def _buckets(shape: Shape) -> tuple[int, ...]:
    return cast("tuple[int, ...]", shape.variant)
