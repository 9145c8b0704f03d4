"""Call the UNet over fixed buffers: eagerly, as a captured CUDA graph, or compiled."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch

from worker.engine.backend import Shape

logger = logging.getLogger(__name__)

Compile = Literal["off", "graphs", "inductor"]
"""A model's `compile` switch."""


_COMPILED_SHAPES = 128


@dataclass(frozen=True)
class UnetInputs:
    """The UNet's inputs at one shape; n is the rows times the halves."""

    sample: torch.Tensor
    """(n, channels, h, w)."""
    timestep: torch.Tensor
    """(n,), float32: one per row; integers below 2^24 are exact in it."""
    tokens: torch.Tensor
    """(n, tokens, width)."""
    pooled: torch.Tensor | None
    """(n, width): SDXL's pooled text embedding."""
    time_ids: torch.Tensor | None
    """(n, 6): SDXL's original size, crop and target size, in pixels."""
    time_condition: torch.Tensor | None
    """(n, width): the embedded guidance scale of latent consistency models."""

    @classmethod
    def allocate(cls, shape: Shape, pipeline: Any, channels_last: bool) -> "UnetInputs":
        """Zeroed buffers for a shape."""
        unet = pipeline.unet
        config, count = unet.config, shape.rows * (2 if shape.guided else 1)
        options = {"dtype": unet.dtype, "device": unet.device}
        factor = pipeline.vae_scale_factor
        latent = (shape.height // factor, shape.width // factor)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        sample = torch.zeros(count, config.in_channels, *latent, **options)
        pooled = time_ids = time_condition = None
        if config.addition_embed_type == "text_time":
            pooled_width = pipeline.text_encoder_2.config.projection_dim
            pooled = torch.zeros(count, pooled_width, **options)
            size = [shape.height, shape.width]
            ids = torch.tensor([[*size, 0, 0, *size]], dtype=unet.dtype)
            time_ids = ids.to(unet.device).repeat(count, 1)
        if config.time_cond_proj_dim is not None:
            time_condition = torch.zeros(count, config.time_cond_proj_dim, **options)
        tokens = pipeline.tokenizer.model_max_length
        return cls(
            sample=sample.to(memory_format=layout),
            timestep=torch.zeros(count, dtype=torch.float32, device=unet.device),
            tokens=torch.zeros(count, tokens, config.cross_attention_dim, **options),
            pooled=pooled,
            time_ids=time_ids,
            time_condition=time_condition,
        )


class UnetOverBuffers:
    """The UNet with one set of buffers as its only inputs."""

    def __init__(self, unet: Any, inputs: UnetInputs, how: Compile) -> None:
        self.inputs = inputs
        self._unet = unet
        if how == "inductor":
            import torch._dynamo

            # Each warmed shape is a compilation of the same code.
            config = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, _COMPILED_SHAPES)
            self._unet = torch.compile(unet, fullgraph=True, dynamic=False)
        self._use_graph = how == "graphs" and unet.device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: torch.Tensor | None = None
        if how == "graphs" and not self._use_graph:
            logger.warning("compile = graphs needs a CUDA device; running eagerly")

    def run(self) -> torch.Tensor:
        """The UNet's output, (n, channels, h, w); valid until the next run."""
        if not self._use_graph:
            return self._call()
        if self._graph is None or self._output is None:
            self._graph, self._output = self._capture()
        self._graph.replay()
        return self._output

    def _call(self) -> torch.Tensor:
        inputs = self.inputs
        extra = None
        if inputs.pooled is not None:
            extra = {"text_embeds": inputs.pooled, "time_ids": inputs.time_ids}
        output: torch.Tensor = self._unet(
            inputs.sample,
            inputs.timestep,
            encoder_hidden_states=inputs.tokens,
            timestep_cond=inputs.time_condition,
            added_cond_kwargs=extra,
            return_dict=False,
        )[0]
        return output

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Record one call, so that a tick costs the host one launch instead of a thousand.

        A few runs on a side stream come first, as capturing demands.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: another model's engine may allocate meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self._call()
        return graph, output
