"""The drawer: one seed is one picture, and what a scene names is what is painted."""

from dataclasses import replace

import numpy as np
import pytest

from deploy.demo_model.scenes import Scene, draw, sample_scene

EMPTY = Scene(time="noon", land="green", relief="hills")


def painted(scene: Scene, seed: int = 3, size: int = 128) -> np.ndarray:
    return np.asarray(draw(scene, np.random.default_rng(seed), size)).astype(int)


def test_equal_generators_paint_equal_pictures() -> None:
    first, second = (np.random.default_rng(5) for _ in range(2))
    scene = sample_scene(first)
    assert sample_scene(second) == scene
    assert np.array_equal(draw(scene, first), draw(scene, second))


def test_another_seed_paints_another_picture_of_the_same_scene() -> None:
    assert not np.array_equal(painted(EMPTY, seed=1), painted(EMPTY, seed=2))


@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_pictures_are_square_and_rgb(size: int) -> None:
    assert painted(EMPTY, size=size).shape == (size, size, 3)


@pytest.mark.parametrize(
    ("thing", "change", "colour"),
    [
        ("red flowers", {"flowers": "red"}, (232, 34, 44)),
        ("a blue house", {"house": "blue"}, (52, 106, 214)),
        ("a lake", {"water": "lake"}, (44, 122, 206)),
        ("a river", {"water": "river"}, (44, 122, 206)),
        ("trees", {"trees": True}, (22, 92, 56)),
        ("the sun", {"sun": True}, (255, 238, 92)),
    ],
)
def test_a_thing_shows_its_colour_where_it_is_and_nowhere_else(
    thing: str, change: dict[str, object], colour: tuple[int, int, int]
) -> None:
    def area(scene: Scene) -> int:
        return int((np.abs(painted(scene) - colour).max(axis=-1) < 12).sum())

    assert area(replace(EMPTY, **change)) > 150, thing
    assert area(EMPTY) < 20, thing


def test_night_is_dark_and_noon_is_bright() -> None:
    assert painted(replace(EMPTY, time="night")).mean() < 80
    assert painted(EMPTY).mean() > 130


def test_lights_in_the_sky_belong_to_their_time() -> None:
    scenes = [sample_scene(np.random.default_rng(seed)) for seed in range(500)]
    assert all(scene.time == "night" for scene in scenes if scene.moon or scene.stars)
    assert all(scene.time in {"noon", "sunset", "dawn"} for scene in scenes if scene.sun)
