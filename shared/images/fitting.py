"""Initial images and masks at a job's size: one rule for the API, which checks masks, and workers.

Without numpy, which the API does not have.
"""

from PIL import Image, ImageChops, ImageFilter, ImageOps

REPAINTED = 128
"""A mask's least value that models take for white."""

FILTER = Image.Resampling.LANCZOS
"""For every change of size."""


def resized(image: Image.Image, size: tuple[int, int], mode: str | None) -> Image.Image:
    """The RGB image or grey mask at (width, height) = `size`.

    `fill` cuts off what is too much on two sides; `fit` shows all of it and continues its edges.
    `stretch`, or None, leaves it as it is: the pipelines of diffusers stretch images themselves,
    and have always done so for jobs without a mode.
    """
    if mode == "fill":
        return ImageOps.fit(image, size, FILTER)
    if mode == "fit":
        # Bars of one colour would be taken for part of the scene.
        inner = ImageOps.contain(image, size, FILTER)
        return continued(inner, size, (size[0] - inner.width) // 2, (size[1] - inner.height) // 2)
    return image


def fitted(image: Image.Image, size: tuple[int, int], mode: str | None) -> Image.Image:
    """Of exactly this size: who mixes images does not leave stretching to diffusers."""
    return resized(image, size, mode).resize(size, FILTER)


def continued(image: Image.Image, size: tuple[int, int], left: int, top: int) -> Image.Image:
    """The image at (left, top) in a larger one, the pixels of its edges repeated around it."""
    right, bottom = left + image.width, top + image.height
    whole = Image.new(image.mode, size)
    whole.paste(image, (left, top))
    for edge, bar in (
        ((left, top, left + 1, bottom), (0, top, left, bottom)),
        ((right - 1, top, right, bottom), (right, top, size[0], bottom)),
        # These take the corners with them.
        ((0, top, size[0], top + 1), (0, 0, size[0], top)),
        ((0, bottom - 1, size[0], bottom), (0, bottom, size[0], size[1])),
    ):
        if bar[0] < bar[2] and bar[1] < bar[3]:
            pixels = whole.crop(edge).resize((bar[2] - bar[0], bar[3] - bar[1]))
            whole.paste(pixels, bar)
    return whole


def mask_of(image: Image.Image, *, from_alpha: bool) -> Image.Image:
    """White where a stored image, as it came from intake, says to repaint.

    Editors export white strokes on nothing. Intake lays what is transparent over white; a mask lies
    over black.
    """
    alpha = image.getchannel("A") if "A" in image.getbands() else Image.new("L", image.size, 255)
    clear = ImageChops.invert(alpha)
    return clear if from_alpha else ImageChops.subtract(image.convert("RGB").convert("L"), clear)


def blurred(mask: Image.Image, blur: int) -> Image.Image:
    """With edges this soft, in pixels, as diffusers' `mask_processor.blur` makes them."""
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


_FILLS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""AUTOMATIC1111's: pixels, and how often the image, blurred by them, is laid over the coarser."""


def filled(image: Image.Image, mask: Image.Image, padding: int | None) -> Image.Image:
    """The RGB image with what is masked in the colors around it, as AUTOMATIC1111's "fill" has it.

    With `padding` pixels around the mask it is blurred as much as if that region had this size.
    """
    share = 1.0
    if padding is not None and (box := mask.getbbox()) is not None:
        sides = (box[2] - box[0] + 2 * padding, box[3] - box[1] + 2 * padding)
        share = min(1.0, max(sides[0] / image.width, sides[1] / image.height))
    known = Image.new("RGBa", image.size)
    known.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    whole = Image.new("RGBA", image.size)
    for radius, times in _FILLS:
        soft = known.filter(ImageFilter.GaussianBlur(radius * share)).convert("RGBA")
        for _ in range(times):
            whole.alpha_composite(soft)
    return whole.convert("RGB")


def repaints(mask: Image.Image) -> bool:
    """Whether any of it is white to a model."""
    return any(mask.histogram()[REPAINTED:])
