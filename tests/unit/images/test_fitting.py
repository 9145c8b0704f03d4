"""What of an initial image a mask leaves to begin with."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from shared.images.fitting import filled

SIZE = (320, 256)


def two_halves() -> Image.Image:
    made = Image.new("RGB", SIZE, (200, 40, 40))
    made.paste((40, 40, 200), (SIZE[0] // 2, 0, *SIZE))
    return made


def hole(*box: int, blur: int = 0) -> Image.Image:
    made = Image.new("L", SIZE)
    ImageDraw.Draw(made).rectangle(box, fill=255)
    return made.filter(ImageFilter.GaussianBlur(blur)) if blur else made


@pytest.mark.parametrize("padding", [None, 8])
def test_a_hole_gets_the_colors_of_its_surroundings_and_the_rest_stays(
    padding: int | None,
) -> None:
    image = two_halves()
    ImageDraw.Draw(image).rectangle((20, 90, 80, 150), fill=(0, 255, 0))  # what is to go
    mask = hole(12, 82, 88, 158, blur=4)
    pixels, white = np.asarray(filled(image, mask, padding)), np.asarray(mask)
    assert np.array_equal(pixels[white == 0], np.asarray(image)[white == 0])
    red, green, _ = pixels[white == 255].reshape(-1, 3).astype(int).T
    assert green.max() < 80
    assert red.mean() > 150
    assert image.getpixel((50, 120)) == (0, 255, 0)


def test_a_mask_of_everything_leaves_nothing() -> None:
    assert not np.asarray(filled(two_halves(), Image.new("L", SIZE, 255), None)).any()
