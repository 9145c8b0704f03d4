"""An initial image of another shape than its job: cropped, shown whole, or left to be stretched."""

import pytest
from PIL import Image

from worker.jobs.inputs import resized


def flag(width: int = 90, height: int = 30) -> Image.Image:
    """Red, white and blue, side by side."""
    image = Image.new("RGB", (width, height), "white")
    image.paste("red", (0, 0, width // 3, height))
    image.paste("blue", (width - width // 3, 0, width, height))
    return image


def test_fill_crops_what_is_too_much() -> None:
    made = resized(flag(), (64, 64), "fill")
    assert made.size == (64, 64)
    assert made.getpixel((32, 32)) == (255, 255, 255)
    assert all(min(made.getpixel((x, 32))) > 150 for x in (0, 63))  # hardly red, hardly blue
    tall = resized(flag(96, 192), (64, 64), "fill")
    assert (tall.getpixel((0, 0)), tall.getpixel((63, 63))) == ((255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize("turned", [False, True])
def test_fit_shows_all_of_it_and_continues_its_edges(turned: bool) -> None:
    turn = Image.Transpose.TRANSPOSE
    source = flag().transpose(turn) if turned else flag()
    made = resized(source, (96, 64), "fit") if not turned else resized(source, (64, 96), "fit")
    if turned:
        made = made.transpose(turn)
    assert made.size == (96, 64)
    for y in (0, 32, 63):
        assert [made.getpixel((x, y)) for x in (2, 48, 93)] == [
            (255, 0, 0), (255, 255, 255), (0, 0, 255),
        ]  # fmt: skip


@pytest.mark.parametrize("mode", ["stretch", None])
def test_stretching_is_left_to_the_pipeline(mode: str | None) -> None:
    source = flag()
    assert resized(source, (64, 64), mode) is source


@pytest.mark.parametrize("mode", ["fill", "fit"])
def test_an_image_of_the_right_size_keeps_its_pixels(mode: str) -> None:
    source = flag(64, 64)
    assert resized(source, (64, 64), mode).tobytes() == source.tobytes()
