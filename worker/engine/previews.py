"""Small images from latents through a linear map that is fitted to the model's own VAE.

A VAE's latent channels are, to a good part, linear in the colours below them. The map from the
latent channels (and a constant) to RGB is fitted once, by least squares, between latents of
synthetic images and the same images at latent resolution; so it works for any VAE.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from worker.engine.backend import Preview
from worker.engine.device import Device
from worker.engine.row import Prediction

_SIZE = 256
"""Side of the synthetic images in pixels."""
_IMAGES = 8
_RIDGE = 1e-4
"""Regularisation, relative to the latents' power: dead channels must not get huge weights."""


@dataclass(frozen=True)
class PreviewMap:
    """Latents -> RGB: one 1×1 convolution."""

    weights: torch.Tensor
    """(channels + 1, 3), float32, on the device; the last line is the constant."""
    error: float
    """Root mean square error of the fit, in 0 … 1 of full scale."""

    @classmethod
    def fit(cls, encode: Callable[[torch.Tensor], torch.Tensor], device: Device) -> "PreviewMap":
        """Fit the map.

        Args:
            encode: images (1, 3, height, width) in -1 … 1 to latents (1, channels, h, w), scaled
                as `draw` will get them.
            device: where `encode` works.
        """
        images = _synthetic_images()
        samples: list[torch.Tensor] = []
        colours: list[torch.Tensor] = []
        for sample in images:
            image = device.from_host(sample[None] * 2 - 1)
            latents = device.run("encode", partial(encode, image))[0].float().cpu()
            height, width = latents.shape[-2:]
            small = torch.nn.functional.adaptive_avg_pool2d(sample[None], (height, width))[0]
            samples.append(latents.flatten(1).T)
            colours.append(small.flatten(1).T)
        known = torch.cat(samples).double()
        known = torch.cat([known, torch.ones(len(known), 1, dtype=torch.float64)], dim=1)
        wanted = torch.cat(colours).double()
        power = known.square().mean().item() * len(known)
        ridge = torch.eye(known.shape[1], dtype=torch.float64) * (_RIDGE * power)
        weights = torch.linalg.solve(known.T @ known + ridge, known.T @ wanted)
        error = (known @ weights - wanted).square().mean().sqrt().item()
        return cls(device.from_host(weights.float()), error)

    def draw(self, latents: torch.Tensor, device: Device) -> Preview:
        """Start drawing clean latents (1, channels, h, w), scaled as the map was fitted to."""
        flat = latents[0].float().permute(1, 2, 0)
        rgb = flat @ self.weights[:-1] + self.weights[-1]
        pixels = (rgb.clamp(0, 1) * 255).round().to(torch.uint8)
        host, ready = device.to_host(pixels), device.mark()

        def wait() -> NDArray[np.uint8]:
            ready.wait()
            return np.ascontiguousarray(host.numpy())

        return wait


def predicted_latents(
    seen: Prediction, alphas_cumprod: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The clean latents that a call of Stable Diffusion's UNet points to.

    The UNet's input is x = √ᾱ·x₀ + √(1-ᾱ)·ε for every scheduler on offer (`scale_model_input`
    makes it so), hence x₀ = (x - √(1-ᾱ)·ε) / √ᾱ, and with v-prediction √ᾱ·x - √(1-ᾱ)·v
    (https://arxiv.org/abs/2202.00512, appendix D). Between two trained timesteps ᾱ is
    interpolated.
    """
    low = min(int(seen.timestep), len(alphas_cumprod) - 1)
    high = min(low + 1, len(alphas_cumprod) - 1)
    share = seen.timestep - low
    alpha = (1 - share) * float(alphas_cumprod[low]) + share * float(alphas_cumprod[high])
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    if prediction_type == "v_prediction":
        return signal * seen.sample - noise * seen.output
    if prediction_type == "sample":
        return seen.output
    return (seen.sample - noise * seen.output) / signal


def _synthetic_images() -> list[torch.Tensor]:
    """Soft colour fields from coarse to fine, (3, 256, 256) in 0 … 1: always the same ones."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(_IMAGES):
        cells = 2 ** (1 + index % 4)
        field = torch.rand(1, 3, cells + 1, cells + 1, generator=generator)
        image = torch.nn.functional.interpolate(
            field, size=(_SIZE, _SIZE), mode="bilinear", align_corners=True
        )
        images.append(image[0])
    return images
