"""From the VAE's output to pixels on the host, and whether they are a picture at all."""

import numpy as np
import torch

from worker.engine.backend import Picture
from worker.engine.device import Device


def start_download(image: torch.Tensor, device: Device) -> "Download":
    """Round a decoded image to bytes on the device and start copying it to the host.

    Args:
        image: (1, 3, height, width) in about -1 … 1. The rounding is that of diffusers: halved
            and shifted in the image's own dtype, scaled to 255 in float32, half to even.
    """
    unit = (image * 0.5 + 0.5).clamp(0, 1)
    pixels = (unit.permute(0, 2, 3, 1).float() * 255).round()
    sound = torch.isfinite(image).all() & (pixels.amax() > 0)
    return Download(device.to_host(pixels.to(torch.uint8)), device.to_host(sound))


class Download:
    """Pixels on their way to the host."""

    def __init__(self, pixels: torch.Tensor, sound: torch.Tensor) -> None:
        self._pixels = pixels
        self._sound = sound

    def picture(self) -> Picture:
        """The image, once the device has passed the mark set after this download."""
        pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = self._pixels[0].numpy()
        return Picture(pixels, bool(self._sound))
