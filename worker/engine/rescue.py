"""A second and a third try for an image that came out as NaN or black: higher precision.

First the VAE alone in float32, whose activations are what overflows in half precision most often;
then the whole pipeline in float32, one row, from the same seed. It stops the ticks for as long as
it lasts; that is the price of never shipping a black picture, and it is rare.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch

from shared.core.errors import NanOutput
from worker.engine.backend import Picture, Shape
from worker.engine.device import Device
from worker.engine.interface import ImageRequest
from worker.engine.model import Model
from worker.engine.pictures import start_download
from worker.engine.row import Row

_GIVEN_UP = "The model gave NaN or an all-black picture, in full precision too."


def rescue(
    model: Model, request: ImageRequest, row: Row, alive: Callable[[], None]
) -> tuple[Picture, str]:
    """Make an unsound image again in higher precision, calling `alive` after each piece of it.

    Returns:
        The sound picture, and what was done, for the receipt.

    Raises:
        NanOutput: it is unsound in float32, too.
    """
    if model.pipeline.vae.dtype != torch.float32 and bool(torch.isfinite(row.latents).all()):
        picture = _decode_upcast(model, row.latents)
        if picture.sound:
            return picture, "unsound: VAE run again in float32"
        alive()
    if model.pipeline.unet.dtype != torch.float32:
        picture = _generate_upcast(model, request, alive)
        if picture.sound:
            row.rescued, row.dtype = True, "float32"
            return picture, "unsound: made again at 1 row in float32 throughout"
    raise NanOutput(_GIVEN_UP)


def _decode_upcast(model: Model, latents: torch.Tensor) -> Picture:
    """Only the VAE in float32."""
    pipeline = copy.copy(model.pipeline)
    pipeline.vae = copy.deepcopy(model.pipeline.vae).float()
    return _picture(_with_pipeline(model, pipeline), latents)


def _generate_upcast(model: Model, request: ImageRequest, alive: Callable[[], None]) -> Picture:
    """Everything in float32, alone."""
    parts: dict[str, Any] = {
        name: copy.deepcopy(part).float() if isinstance(part, torch.nn.Module) else part
        for name, part in model.pipeline.components.items()
    }
    pipeline = copy.copy(model.pipeline)
    for name, part in parts.items():
        setattr(pipeline, name, part)
    upcast = _with_pipeline(model, pipeline)
    row = upcast.prepare(request)
    shape = Shape(request.width, request.height, upcast.guided(request), rows=1)
    while not row.finished:
        upcast.tick(shape, [row])
        if row.error is not None:
            raise row.error
        # On a GPU ticks are only queued; wait, or a cancellation would be heard after the last.
        model.device.mark().wait()
        alive()
    return _picture(upcast, row.latents)


def _with_pipeline(model: Model, pipeline: Any) -> Model:
    return Model(pipeline, model.family, model.device, schedules=model.schedules)


def _picture(model: Model, latents: torch.Tensor) -> Picture:
    device: Device = model.device
    image = device.run("decode", lambda: model.decode(latents))
    download = start_download(image, device)
    device.mark().wait()
    return download.picture()
