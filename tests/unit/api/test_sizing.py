"""The size that follows an initial image: its shape, within the model's limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.jobs.planning import OpenSize
from shared.core.model_catalog import ModelSpec

SD = ModelSpec(name="sd", source="a/b", revision="c")
DEMO = ModelSpec(
    name="demo", source="a/b", default_width=128, default_height=128, max_width=256, max_height=256
)


@pytest.mark.parametrize(
    ("spec", "image", "size"),
    [
        (DEMO, (256, 128), (192, 96)),
        (DEMO, (128, 256), (96, 192)),
        (DEMO, (96, 96), (128, 128)),
        (SD, (512, 512), (512, 512)),
        (SD, (4096, 3072), (576, 432)),
        (SD, (3072, 4096), (432, 576)),
        (SD, (1920, 1080), (688, 384)),
    ],
)
def test_the_shape_stays(spec: ModelSpec, image: tuple[int, int], size: tuple[int, int]) -> None:
    assert OpenSize(spec, None, None).for_image(*image) == size


def test_the_other_side_follows_the_one_that_is_given() -> None:
    assert OpenSize(SD, 640, None).for_image(1000, 500) == (640, 320)
    assert OpenSize(SD, None, 640).for_image(500, 1000) == (320, 640)
    assert OpenSize(SD, None, 1024).for_image(500, 100) == (1024, 1024)
    assert OpenSize(SD, 64, None).for_image(4096, 64) == (64, 64)


SIDES = st.integers(64, 4096)
MULTIPLES = st.sampled_from([8, 16, 32, 64])


@given(SIDES, SIDES, st.integers(8, 64), st.integers(8, 64), MULTIPLES)
def test_every_size_is_one_that_the_model_makes(
    width: int, height: int, widest: int, highest: int, multiple: int
) -> None:
    spec = ModelSpec(
        name="any",
        source="a/b",
        default_width=min(64, widest) * 8,
        default_height=64,
        max_width=widest * 8,
        max_height=highest * 8,
        size_multiple=multiple,
    )
    made = OpenSize(spec, None, None).for_image(width, height)
    for side, most in zip(made, (spec.max_width, spec.max_height), strict=True):
        assert 64 <= side <= most
        assert side % 8 == 0


@given(SIDES, SIDES)
def test_shapes_that_the_limits_allow_stay_within_a_few_percent(width: int, height: int) -> None:
    made = OpenSize(SD, None, None).for_image(width, height)
    if abs(math.log(width / height)) < math.log(3):
        assert abs(math.log(made[0] / made[1] / (width / height))) < 0.03
        assert 0.75 < made[0] * made[1] / 512**2 < 1.35
