"""Captions are true, varied, and silent only now and then."""

import numpy as np

from deploy.demo_model.captions import caption, full_prompt
from deploy.demo_model.scenes import (
    FLOWER_COLOURS,
    HOUSE_COLOURS,
    LANDS,
    RELIEFS,
    TIMES,
    WATERS,
    Scene,
    sample_scene,
)

FULL = Scene(
    time="sunset",
    land="desert",
    relief="hills",
    water="lake",
    flowers="red",
    house="white",
    trees=True,
)
SCENES = [sample_scene(np.random.default_rng(seed)) for seed in range(400)]


def test_a_full_prompt_names_everything_in_plain_words() -> None:
    text = full_prompt(FULL, np.random.default_rng(0))
    head, *things = text.split(", ")
    assert head == "desert hills at sunset"
    assert sorted(things) == ["a lake", "a white house", "pine trees", "red flowers"]


def test_captions_say_nothing_false() -> None:
    for index, scene in enumerate(SCENES):
        text = caption(scene, np.random.default_rng(index))
        true = {scene.time, scene.land, scene.relief, scene.water}
        for word in {*TIMES, *LANDS, *RELIEFS, *WATERS} - true:
            assert word not in text.split(), (text, scene)
        for colour in FLOWER_COLOURS:
            assert (f"{colour} flowers" in text) <= (scene.flowers == colour)
        for colour in HOUSE_COLOURS:
            assert (f"a {colour} house" in text) <= (scene.house == colour)
        assert ("trees" in text) <= scene.trees


def test_words_and_their_order_vary() -> None:
    texts = {caption(FULL, np.random.default_rng(seed)) for seed in range(200)}
    assert len(texts) > 190
    assert len({text.split()[0] for text in texts}) > 8


def test_details_are_left_out_but_seldom() -> None:
    named = ["flowers" in caption(FULL, np.random.default_rng(seed)) for seed in range(1000)]
    assert 0.8 < np.mean(named) < 0.97
