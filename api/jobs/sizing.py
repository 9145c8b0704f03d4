"""The size of an img2img job whose request leaves it open: the initial image's shape decides."""

import math
from dataclasses import dataclass
from functools import lru_cache

from shared.model_catalog import ModelSpec

_SHAPE_COUNTS = 8
"""How much more a wrong shape counts than a wrong number of pixels."""
_MIN_SIDE = 64


@dataclass(frozen=True)
class OpenSize:
    """A size of which a request gave one side at most."""

    spec: ModelSpec
    width: int | None
    height: int | None

    def for_image(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels for an initial image of this size.

        Both sides lie within the model's limits; a shape that they do not allow comes as near as
        they let it. With no side given there are about as many pixels as at the model's default
        size, which it was trained for.
        """
        widths, heights = (
            _sides(self.spec.max_width, self.spec),
            _sides(self.spec.max_height, self.spec),
        )
        if self.width is not None:
            return self.width, _nearest(heights, self.width * height / width)
        if self.height is not None:
            return _nearest(widths, self.height * width / height), self.height
        pixels = self.spec.default_width * self.spec.default_height
        return _best(width / height, pixels, widths, heights)


def _sides(longest: int, spec: ModelSpec) -> range:
    step = spec.size_multiple
    shortest = min(-(-_MIN_SIDE // step) * step, longest)
    return range(shortest, longest + 1, step)


def _nearest(sides: range, length: float) -> int:
    steps = round((length - sides.start) / sides.step)
    return sides[min(max(steps, 0), len(sides) - 1)]


@lru_cache(4096)
def _best(aspect: float, pixels: int, widths: range, heights: range) -> tuple[int, int]:
    def error(size: tuple[int, int]) -> float:
        width, height = size
        shape = abs(math.log(width / height / aspect))
        return _SHAPE_COUNTS * shape + abs(math.log(width * height / pixels))

    return min(((width, _nearest(heights, width / aspect)) for width in widths), key=error)
