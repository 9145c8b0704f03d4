"""Stable Diffusion 1.x, 2.x and XL with their Turbo kinds, and latent consistency models."""

import dataclasses
from collections.abc import Hashable
from typing import Any, ClassVar, cast

import torch
from PIL import Image

from shared.core.families import FAMILIES
from shared.core.model_catalog import ModelSpec
from shared.core.prompt_weights import PromptSyntax
from worker.engine.backend import Shape
from worker.engine.controls import Residuals
from worker.engine.device import Device
from worker.engine.families.base import POSITIVE, Pass, Start, no_step_left, per_channel
from worker.engine.families.diffusion import DiffusionFamily
from worker.engine.interface import ImageRequest
from worker.engine.prompts import Chunk, ChunkReader, weighed
from worker.engine.row import Half, Kept, Tensors
from worker.engine.schedules import Schedules


class StableDiffusion(DiffusionFamily):
    """A UNet over CLIP's tokens."""

    name = "sd"
    network_part = "unet"
    half_precision = "float16"
    float32_rescue = True
    control_class = "ControlNetModel"
    embeddings: ClassVar[tuple[str | None, ...]] = (None, "text")
    """Kinds of additional embedding that the UNet may have."""

    def __init__(
        self, pipeline: Any, device: Device, spec: ModelSpec, schedules: Schedules | None = None
    ) -> None:
        super().__init__(pipeline, device, spec, schedules)
        self._readers = [ChunkReader(tokenizer) for tokenizer, _ in self.readers()]

    @classmethod
    def fault(cls, pipeline: Any) -> str | None:
        """The UNet takes the VAE's latents, and embeddings that come from the text alone."""
        missing = super().fault(pipeline)
        if missing:
            return missing
        unet, vae = pipeline.unet.config, pipeline.vae
        if type(vae).__name__ not in ("AutoencoderKL", "AutoencoderTiny"):
            return f"its VAE is an {type(vae).__name__}"
        made, wanted = vae.config.latent_channels, unet.in_channels
        if type(pipeline).__name__ == FAMILIES[cls.name].inpaint_checkpoint:
            if wanted != 2 * made + 1:  # latents, mask, masked image
                return f"it is made for inpainting and its UNet takes {wanted} channels"
        elif wanted != made:
            return f"its UNet takes {wanted} channels and its VAE makes {made}"
        if unet.class_embed_type is not None or unet.addition_embed_type not in cls.embeddings:
            return "its UNet wants embeddings of another kind"
        return None

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        if request.prompt_syntax == "plain" and not request.long_prompt:
            return self.embedding(request, half)
        text, (_, count) = self.text(request, half), _variant(shape)
        role = f"{request.prompt_syntax}, {count if request.long_prompt else 'cut'}"
        return self.encoded(text, role, lambda: self._encode_chunks(request, half, count))

    def variant(self, request: ImageRequest, rows: int) -> Hashable:
        """The halves, and the chunks of the longer text: the other one is padded to as many."""
        guided = self.guided(request)
        if not request.long_prompt:
            return guided, 1
        chunks = [one for half in self.halves(request) for one in self._chunks(request, half)]
        return guided, max(map(len, chunks))

    def passes(self, shape: Shape) -> tuple[Pass, ...]:
        """The variant says more than whether rows are guided."""
        guided, _ = _variant(shape)
        return self.guided_passes if guided else POSITIVE

    def cut(self, prompt: str, syntax: PromptSyntax, is_long: bool) -> str | None:
        """What the encoder that reads least leaves out."""
        cuts = [reader.read(prompt, syntax, is_long).cut for reader in self._readers]
        return max((cut for cut in cuts if cut), key=len, default=None)

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        return self.controlled(network, inputs, ())

    def controlled(self, network: Any, inputs: Tensors, residuals: Residuals) -> torch.Tensor:
        """The same, with what ControlNets add to its way down and to its middle."""
        *down, middle = residuals or (None,)
        sample = inputs["sample"]
        if "masked" in inputs:
            sample = torch.cat([sample, inputs["masked"]], dim=1)
        return network(
            sample,
            inputs["timestep"],
            encoder_hidden_states=inputs["tokens"],
            timestep_cond=inputs.get("time_condition"),
            added_cond_kwargs=_more_conditions(inputs),
            down_block_additional_residuals=down or None,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]

    def control_fault(self, network: Any) -> str | None:
        """It must add to the same blocks, and read the same text or less of it."""
        mine, its = self.network.config, network.config
        if its.global_pool_conditions or its.conditioning_channels != 3:
            return "sees its image in a way that is not supported"
        names = ("block_out_channels", "layers_per_block", "cross_attention_dim")
        same = all(mine[name] == its[name] for name in names)
        same &= its["addition_embed_type"] in (None, mine["addition_embed_type"])
        if not same or its.in_channels != self.pipeline.vae.config.latent_channels:
            return "does not fit this model: it was made for another UNet"
        return None

    def control_condition(
        self, network: Any, image: Image.Image, request: ImageRequest, generator: torch.Generator
    ) -> torch.Tensor:
        """The pixels in 0 … 1."""
        from diffusers.image_processor import VaeImageProcessor

        processor = VaeImageProcessor(
            vae_scale_factor=self.pipeline.vae_scale_factor, do_normalize=False
        )
        pixels = processor.preprocess(image, **self.fitting(request)).to(torch.float32)
        return pixels.repeat_interleave(1, dim=0).to(
            device=self.device.torch_device, dtype=network.dtype
        )

    def control(self, network: Any, inputs: Tensors, condition: torch.Tensor) -> Residuals:
        """It sees the latents alone, also where the UNet reads a mask, too."""
        down, middle = network(
            inputs["sample"],
            inputs["timestep"],
            encoder_hidden_states=inputs["tokens"],
            controlnet_cond=condition,
            conditioning_scale=1.0,
            added_cond_kwargs=_more_conditions(inputs),
            return_dict=False,
        )
        return [*down, middle]

    @property
    def takes_mask(self) -> bool:
        return self.network.config.in_channels > self.pipeline.vae.config.latent_channels

    def encode(self, text: str, half: Half) -> Tensors:
        return {"tokens": self._call_encoders(text)[0]}

    def _call_encoders(self, text: str) -> Any:
        return self.pipeline.encode_prompt(
            prompt=text,
            device=self.encode_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )

    def _chunks(self, request: ImageRequest, half: Half) -> list[tuple[Chunk, ...]]:
        """For each encoder."""
        text, syntax, is_long = self.text(request, half), request.prompt_syntax, request.long_prompt
        return [reader.read(text, syntax, is_long).chunks for reader in self._readers]

    def _encode_chunks(self, request: ImageRequest, half: Half, count: int) -> Tensors:
        """The chunks behind each other; a pooled embedding is the first one's, as in A1111."""
        empty = [reader.read("", "plain", False).chunks for reader in self._readers]
        texts = [
            chunks + blank * (count - len(chunks))
            for chunks, blank in zip(self._chunks(request, half), empty, strict=True)
        ]
        encoded = [self._encode_chunk(parts) for parts in zip(*texts, strict=True)]
        return {**encoded[0], "tokens": torch.cat([each["tokens"] for each in encoded], dim=1)}

    def _encode_chunk(self, parts: tuple[Chunk, ...]) -> Tensors:
        """One chunk for each encoder, as `encode_prompt` calls them, then the weights."""
        (chunk,) = parts
        encoder = self.pipeline.text_encoder
        mask = None
        if getattr(encoder.config, "use_attention_mask", None):
            mask = torch.arange(len(chunk.tokens), device=self.encode_device)[None] < chunk.length
            mask = mask.long()
        tokens = encoder(self._numbers(chunk), attention_mask=mask)[0]
        return {"tokens": weighed(tokens.to(encoder.dtype), chunk)}

    def _numbers(self, chunk: Chunk) -> torch.Tensor:
        return torch.tensor([chunk.tokens], device=self.encode_device)

    def _cut(self, request: ImageRequest) -> tuple[torch.Tensor, int]:
        """The timesteps that a strength leaves, and the steps they make up."""
        timesteps, steps = self.image_pipeline.get_timesteps(
            request.steps, request.strength, self.device.torch_device
        )
        return timesteps, steps

    def _from_image(
        self, request: ImageRequest, scheduler: Any, generator: torch.Generator
    ) -> tuple[int, torch.Tensor, torch.Tensor]:
        from diffusers.utils.torch_utils import randn_tensor

        pipeline = self.image_pipeline
        pipeline.scheduler = scheduler
        timesteps, steps = self._cut(request)
        if len(timesteps) == 0:
            raise no_step_left()
        start, dtype, device = self.source(request), self.dtype, self.device.torch_device
        if request.init_latents is not None:
            # `prepare_latents` knows latents by their four channels, and some VAEs make more.
            clean = start.to(device=device, dtype=dtype)
            noise = randn_tensor(clean.shape, generator, device=device, dtype=dtype)
            return steps, timesteps, self.under_noise(scheduler, clean, noise, timesteps[:1])
        latents: torch.Tensor = pipeline.prepare_latents(
            start, timesteps[:1], 1, 1, dtype, device, generator
        )
        return steps, timesteps, latents

    def _repainted(
        self, request: ImageRequest, scheduler: Any, generator: torch.Generator
    ) -> Start:
        """As the inpainting pipeline does it; without a mask all is repainted."""
        pipeline, device = self.inpaint_pipeline, self.device.torch_device
        pipeline.scheduler = scheduler
        strength = 1.0 if request.strength is None else request.strength
        timesteps, steps = pipeline.get_timesteps(request.steps, strength, device)
        if len(timesteps) == 0:
            raise no_step_left()
        image, mask = self.masked_image(request)
        shape = (1, pipeline.vae.config.latent_channels, request.height, request.width)
        latents, noise, *clean = pipeline.prepare_latents(
            *shape,
            self.dtype,
            device,
            generator,
            image=image if request.init_latents is None else request.init_latents,
            timestep=timesteps[:1],
            is_strength_max=strength == 1.0,
            return_noise=True,
            return_image_latents=not self.takes_mask,
        )
        start = Start(scheduler, timesteps, steps, latents)
        if self.takes_mask:
            masked = image * (mask < 0.5)
            planes = pipeline.prepare_mask_latents(
                mask, masked, 1, request.height, request.width, self.dtype, device, generator, False
            )
            start = dataclasses.replace(start, conditions={"masked": torch.cat(planes, dim=1)})
        else:
            # Nobody reads the masked image's latents, but encoding it would draw noise.
            if type(pipeline.vae).__name__ == "AutoencoderKL":
                torch.randn(latents.shape, generator=generator, dtype=pipeline.vae.dtype)
            small = torch.nn.functional.interpolate(mask, size=latents.shape[-2:])
            kept = Kept(clean[0], noise, small.to(device, self.dtype))
            start = dataclasses.replace(start, kept=kept)
        self._restore_vae()
        options = pipeline.prepare_extra_step_kwargs(generator, 0.0)
        return dataclasses.replace(start, step_options=options)

    def _restore_vae(self) -> None:
        """Undo what encoding an image did to the VAE."""


class StableDiffusionXL(StableDiffusion):
    """Two text encoders, a pooled embedding, sizes, a VAE that may ask for float32."""

    name = "sdxl"
    encoders = ("text_encoder", "text_encoder_2")
    embeddings = ("text_time",)

    def __init__(
        self, pipeline: Any, device: Device, spec: ModelSpec, schedules: Schedules | None = None
    ) -> None:
        super().__init__(pipeline, device, spec, schedules)
        self._zero_for_none = bool(pipeline.config.get("force_zeros_for_empty_prompt", False))
        self._vae_upcast = bool(pipeline.vae.config.force_upcast)
        self._restore_vae()

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        """The text and the size; XL tells no negative prompt from an empty one."""
        text = dict(super().conditions(request, half, shape))
        if half == "negative" and request.negative_prompt is None and self._zero_for_none:
            text = {name: torch.zeros_like(value) for name, value in text.items()}
        size = [request.height, request.width]
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=self.dtype)
        return {**text, "time_ids": ids.to(self.device.torch_device)}

    def encode(self, text: str, half: Half) -> Tensors:
        """Both encoders' tokens, and the second one's summary."""
        encoded = self._call_encoders(text)
        return {"tokens": encoded[0], "pooled": encoded[2]}

    def _encode_chunk(self, parts: tuple[Chunk, ...]) -> Tensors:
        """The last but one layer of both; the pooled embedding is the second's."""
        encoders, states = (self.pipeline.text_encoder, self.pipeline.text_encoder_2), []
        for encoder, chunk in zip(encoders, parts, strict=True):
            output = encoder(self._numbers(chunk), output_hidden_states=True)
            states.append(weighed(output.hidden_states[-2], chunk))
        dtype = self.pipeline.text_encoder_2.dtype
        return {"tokens": torch.cat(states, dim=-1).to(dtype), "pooled": output[0].to(dtype)}

    def _from_image(
        self, request: ImageRequest, scheduler: Any, generator: torch.Generator
    ) -> tuple[int, torch.Tensor, torch.Tensor]:
        start = super()._from_image(request, scheduler, generator)
        self._restore_vae()
        return start

    def _restore_vae(self) -> None:
        """Keep the VAE in float32, where its activations fit; img2img casts it back."""
        if self._vae_upcast:
            self.pipeline.vae.to(dtype=torch.float32)

    def _scale(self, latents: torch.Tensor) -> torch.Tensor:
        config, statistics = self.pipeline.vae.config, self._statistics(latents)
        if statistics is None:
            return super()._scale(latents)
        mean, deviation = statistics
        return (latents - mean) * config.scaling_factor / deviation

    def _unscale(self, latents: torch.Tensor) -> torch.Tensor:
        config, statistics = self.pipeline.vae.config, self._statistics(latents)
        if statistics is None:
            return super()._unscale(latents)
        mean, deviation = statistics
        return latents * deviation / config.scaling_factor + mean

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and deviation of the VAE's latents, where its config has both."""
        config = self.pipeline.vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return None
        return per_channel(mean, latents), per_channel(deviation, latents)


class LatentConsistency(StableDiffusion):
    """A distilled UNet that takes the guidance scale as an input, and so runs one half only."""

    name = "lcm"

    def guided(self, request: ImageRequest) -> bool:
        """Only where the guidance is not embedded."""
        return super().guided(request) and self._width is None

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        """The text and the embedded guidance scale."""
        text = super().conditions(request, half, shape)
        if self._width is None:
            return text
        scale = torch.tensor(request.guidance_scale - 1).repeat(1)
        embedding: torch.Tensor = self.pipeline.get_guidance_scale_embedding(
            scale, embedding_dim=self._width
        )
        return {
            **text,
            "time_condition": embedding.to(device=self.device.torch_device, dtype=self.dtype),
        }

    @property
    def _width(self) -> int | None:
        return self.network.config.time_cond_proj_dim

    def _scheduler(self, request: ImageRequest) -> Any:
        """This family's schedule depends on the strength."""
        if request.strength is None:
            return super()._scheduler(request)
        return self.schedules.make(request.scheduler, request.steps, strength=request.strength)

    def _cut(self, request: ImageRequest) -> tuple[torch.Tensor, int]:
        """Already in the schedule."""
        timesteps = self.image_pipeline.scheduler.timesteps
        return timesteps, len(timesteps)


def _variant(shape: Shape) -> tuple[bool, int]:
    """Whether there are two halves, and how many chunks a text has."""
    return cast("tuple[bool, int]", shape.variant)


def _more_conditions(inputs: Tensors) -> dict[str, torch.Tensor] | None:
    """XL's."""
    if "pooled" not in inputs:
        return None
    return {"text_embeds": inputs["pooled"], "time_ids": inputs["time_ids"]}
