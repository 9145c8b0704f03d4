"""How large an image may be, and how large it becomes where a request leaves that open."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from api.core.errors import FieldError, Problem
from api.jobs.options import Expand
from api.jobs.submission import JobSubmission
from shared.core.families import FAMILIES
from shared.core.model_catalog import ModelSpec

_SHAPE_COUNTS = 8
"""How much more a wrong shape counts than a wrong number of pixels."""

_MIN_SIDE = 64
NO_ROOM = f"That leaves less than {_MIN_SIDE} pixels for the initial image."


@dataclass(frozen=True)
class OpenSize:
    """A size of which a request gave one side at most."""

    spec: ModelSpec
    width: int | None
    height: int | None
    expand: Expand | None = None

    def for_image(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels for an initial image of this size.

        Both sides lie within the model's limits; a shape that they do not allow comes as near as
        they let it. With no side given there are about as many pixels as at the model's default
        size, which it was trained for; where the image is to be expanded, its own and the rest.

        Raises:
            Problem: 422 where an expanded image is larger than the model makes them, or leaves no
                room for the initial one.
        """
        across, down = (self.expand.across, self.expand.down) if self.expand else (0, 0)
        widths = _sides(self.spec.max_width, self.spec)
        heights = _sides(self.spec.max_height, self.spec)
        wanted: tuple[float, float]
        if self.width is not None:
            wanted = self.width, (self.width - across) * height / width + down
            size = self.width, _nearest(heights, wanted[1])
        elif self.height is not None:
            wanted = (self.height - down) * width / height + across, self.height
            size = _nearest(widths, wanted[0]), self.height
        elif self.expand is not None:
            wanted = width + across, height + down
            size = _nearest(widths, wanted[0]), _nearest(heights, wanted[1])
        else:
            pixels = self.spec.default_width * self.spec.default_height
            return _best(width / height, pixels, widths, heights)
        if self.expand is not None:
            self._check_expanded(wanted, size, self.expand)
        return size

    def _check_expanded(
        self, wanted: tuple[float, float], size: tuple[int, int], expand: Expand
    ) -> None:
        whole, most = tuple(map(round, wanted)), (self.spec.max_width, self.spec.max_height)
        if whole[0] > most[0] or whole[1] > most[1]:
            message = (
                f"That makes {whole[0]} × {whole[1]} pixels; {self.spec.name} makes "
                f"{most[0]} × {most[1]} at most. Give width and height to scale it down."
            )
        elif min(size[0] - expand.across, size[1] - expand.down) < _MIN_SIDE:
            message = NO_ROOM
        else:
            return
        raise Problem.invalid("/expand", "expand_over_limit", message)


def with_sizes_of(family: str | None, spec: ModelSpec) -> ModelSpec:
    """The model, its `size_multiple` one of its family's, too, if that is known."""
    facts = FAMILIES.get(family or "")
    if facts is None:
        return spec
    step = math.lcm(spec.size_multiple, facts.size_multiple)
    return spec.model_copy(update={"size_multiple": step})


def upscaled_size(width: int, height: int, scale: float, spec: ModelSpec) -> dict[str, int]:
    """`width` and `height` in pixels, as near to `scale` times the sides as the model has them."""
    step = spec.size_multiple
    sides = {"width": width, "height": height}
    return {name: max(1, int(side * scale / step + 0.5)) * step for name, side in sides.items()}


def leaves_room(submission: JobSubmission) -> bool:
    """Whether the sides that are given are longer than what is painted around the image."""
    width, height, expand = submission.width, submission.height, submission.expand
    return expand is None or (
        (width is None or width - expand.across >= _MIN_SIDE)
        and (height is None or height - expand.down >= _MIN_SIDE)
    )


def broken_upscale_limit(hires: Mapping[str, Any], spec: ModelSpec) -> FieldError | None:
    """What is wrong with the size of a second pass."""
    if hires["width"] <= spec.max_width and hires["height"] <= spec.max_height:
        return None
    return FieldError(
        pointer="/hires/scale",
        code="size_over_limit",
        message=f"{spec.name} makes images up to {spec.max_width} × {spec.max_height} pixels; "
        f"these would have {hires['width']} × {hires['height']}.",
    )


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
