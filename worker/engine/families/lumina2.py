"""Lumina-Image 2.0."""

from collections.abc import Mapping
from typing import Any

import torch

from worker.engine.backend import Shape
from worker.engine.families.base import TWO_CALLS
from worker.engine.families.flow import FlowFamily
from worker.engine.interface import ImageRequest
from worker.engine.prompts import Reader
from worker.engine.row import Half, Row, Tensors


class Lumina2(FlowFamily):
    """Gemma's tokens, joined with the image's and padded to the longest of a batch."""

    name = "lumina2"
    guided_passes = TWO_CALLS
    encodes_halves_alike = False
    default_text_tokens = 256
    capturable = False  # the transformer reads the texts' lengths on the host
    sizes_agree = False  # in a batch the sequence is longer

    def tokens(self, request: ImageRequest) -> int:
        """diffusers takes the latents' channels for the number of tokens, at every size."""
        return self.channels

    def dynamic(self, row: Row, timestep: torch.Tensor) -> Tensors:
        """Its time runs from noise at 0 to the image at 1."""
        time = 1 - timestep.reshape(1) / row.scheduler.config.num_train_timesteps
        return {"sample": row.latents, "timestep": time}

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        """One call of the transformer.

        In a batch one more element, a text of full length, keeps the joint sequence at one length
        whatever the neighbouring texts are; otherwise a row's bits would follow its neighbours.
        """
        batch = {name: inputs[name] for name in ("sample", "timestep", "tokens", "mask")}
        if shape.batch_size > 1:
            batch = {
                name: torch.cat([value, torch.ones_like(value[:1])])
                for name, value in batch.items()
            }
        output: torch.Tensor = network(
            hidden_states=batch["sample"],
            timestep=batch["timestep"],
            encoder_hidden_states=batch["tokens"],
            encoder_attention_mask=batch["mask"],
            return_dict=False,
            attention_kwargs={},
        )[0]
        return output[: shape.batch_size]

    def combine(self, row: Row, outputs: Mapping[Half, torch.Tensor]) -> torch.Tensor:
        """Guided predictions keep the length that the positive one has; the sign is the other."""
        combined = super().combine(row, outputs)
        if "negative" in outputs:
            wanted = torch.norm(outputs["positive"], dim=-1, keepdim=True)
            combined = combined * (wanted / torch.norm(combined, dim=-1, keepdim=True))
        return -combined

    def readers(self) -> list[Reader]:
        """The instruction takes part of the places."""
        tokenizer = self.pipeline.tokenizer
        instruction = tokenizer(self.pipeline.system_prompt + " <Prompt Start> ").input_ids
        return [(tokenizer, max(1, self.text_tokens - len(instruction) + 1))]

    def encode(self, text: str, half: Half) -> Tensors:
        """The text and its mask; the positive one behind the pipeline's instruction."""
        device, most = self.encode_device, self.text_tokens
        if half == "negative":  # the pipeline puts no instruction before it
            tokens, mask = self.pipeline._get_gemma_prompt_embeds(
                prompt=text, device=device, max_sequence_length=most
            )
        else:
            tokens, mask, _, _ = self.pipeline.encode_prompt(
                text, do_classifier_free_guidance=False, device=device, max_sequence_length=most
            )
        return {"tokens": tokens, "mask": mask}
