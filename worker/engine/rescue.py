"""A second and a third try for an image that came out as NaN or black: higher precision.

First the VAE alone in float32, whose activations are what overflows in half precision most often;
then, where a copy of the model would fit, the whole pipeline in float32, one row, from the same
seed. It stops the ticks for as long as it lasts; that is the price of never shipping a black
image, and it is rare.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image

from shared.core.errors import NanOutput
from worker.engine.adapters import Adapters
from worker.engine.agreement import without_chunking
from worker.engine.backend import DecodedImage
from worker.engine.controls import ControlNet
from worker.engine.device import start_download
from worker.engine.families.base import Family
from worker.engine.interface import ImageRequest
from worker.engine.model import Model
from worker.engine.row import Row


def rescue(
    model: Model, request: ImageRequest, row: Row, alive: Callable[[], None]
) -> tuple[DecodedImage, str]:
    """Make an unsound image again in higher precision, calling `alive` after each piece of it.

    Returns:
        The sound image, and what was done, for the receipt.

    Raises:
        NanOutput: nothing that its family allows helps.
    """
    family = model.family
    if family.pipeline.vae.dtype != torch.float32 and bool(torch.isfinite(row.latents).all()):
        image = _decode_upcast(family, row)
        if image.sound:
            return image, "unsound: VAE run again in float32"
        alive()
    fits = family.spec.offload == "none" and family.spec.quantization is None
    if not (family.float32_rescue and fits):
        raise NanOutput("The model gave NaN or an all-black image.")
    if family.dtype != torch.float32:
        image = _generate_upcast(family, request, row, alive)
        if image.sound:
            row.rescued, row.dtype = True, "float32"
            return image, "unsound: made again at 1 row in float32 throughout"
    raise NanOutput("The model gave NaN or an all-black image, in full precision too.")


def _decode_upcast(family: Family, row: Row) -> DecodedImage:
    """Only the VAE in float32."""
    return _image(_with_parts(family, {"vae": copy.deepcopy(family.pipeline.vae).float()}), row)


def _generate_upcast(
    family: Family, request: ImageRequest, unsound: Row, alive: Callable[[], None]
) -> DecodedImage:
    """Everything in float32, alone."""
    parts = {
        name: without_chunking(copy.deepcopy(part).float())
        for name, part in family.pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }
    upcast = Model(_with_parts(family, parts))
    if family.ip_adapter is not None and request.references:
        upcast.family.ip_adapter = family.ip_adapter.upcast()
    adapters = tuple((adapter.upcast(), scale) for adapter, scale in unsound.adapters)
    nets = {control.net: control.net.upcast() for control in unsound.controls}
    weights = adapters, [nets[control.net] for control in unsound.controls]
    try:
        row = _denoise(upcast, request, weights, alive)
        if request.hires is not None:
            row = _denoise(upcast, _second_pass(upcast.family, request, row), weights, alive)
        return _image(upcast.family, row)
    finally:
        upcast.close()


def _denoise(
    model: Model,
    request: ImageRequest,
    weights: tuple[Adapters, Sequence[ControlNet]],
    alive: Callable[[], None],
) -> Row:
    shape = model.shape(request, 1)
    row = model.prepare(request, shape, *weights)
    while not row.finished:
        model.tick(shape, [row])
        if row.error is not None:
            raise row.error
        # On a GPU ticks are only queued; wait, or a cancellation would be heard after the last.
        model.device.mark().wait()
        alive()
    return row


def _second_pass(family: Family, request: ImageRequest, row: Row) -> ImageRequest:
    hires = request.hires
    if hires is not None and hires.upscaler == "latent":
        return request.second_pass(latents=family.upscaled(row, hires.width, hires.height))
    return request.second_pass(image=Image.fromarray(_image(family, row).pixels))


def _with_parts(family: Family, parts: Mapping[str, torch.nn.Module]) -> Family:
    """The same family over a pipeline some of whose parts are others."""
    pipeline = copy.copy(family.pipeline)
    for name, part in parts.items():
        setattr(pipeline, name, part)
    return type(family)(pipeline, family.device, family.spec, family.schedules)


def _image(family: Family, row: Row) -> DecodedImage:
    device = family.device
    image = device.run("decode", lambda: family.decode(row))
    downloaded = start_download(image, device)
    device.mark().wait()
    return downloaded()
