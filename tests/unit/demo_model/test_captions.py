"""Captions are true, varied, and silent only now and then."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CLIPTokenizer

from deploy.demo_model.captions import caption, full_prompt
from deploy.demo_model.preset import TOKENS
from deploy.demo_model.scenes import (
    FLOWER_COLOURS,
    HOUSE_COLOURS,
    LANDS,
    RELIEFS,
    TIMES,
    WATERS,
    Scene,
    draw,
    sample_scene,
)
from deploy.demo_model.text import make_tokenizer, tokens

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
    assert len(texts) > 180
    assert len({text.split()[0] for text in texts}) > 8


def test_details_are_left_out_but_seldom() -> None:
    assert 0.75 < _share("flowers", replace(FULL, house=None)) < 0.95


def test_houses_and_moons_are_left_out_more_often() -> None:
    """So that a prompt may bring them unasked, and a negative prompt take them away."""
    night = replace(FULL, house=None, time="night", moon=True)
    for scene, word in ((FULL, "white"), (night, "moon")):
        assert 0.55 < _share(word, scene) < _share("flowers", replace(FULL, house=None))


def _share(word: str, scene: Scene) -> np.floating:
    """Of a thousand captions, those with the word."""
    return np.mean([word in caption(scene, np.random.default_rng(seed)) for seed in range(1000)])


# --- The drawer: one seed is one image, and what a scene names is what is painted ---


EMPTY = Scene(time="noon", land="green", relief="hills")


def painted(scene: Scene, seed: int = 3, size: int = 128) -> np.ndarray:
    return np.asarray(draw(scene, np.random.default_rng(seed), size)).astype(int)


def test_equal_generators_paint_equal_images() -> None:
    first, second = (np.random.default_rng(5) for _ in range(2))
    scene = sample_scene(first)
    assert sample_scene(second) == scene
    assert draw(scene, first).tobytes() == draw(scene, second).tobytes()


def test_another_seed_paints_another_image_of_the_same_scene() -> None:
    assert not np.array_equal(painted(EMPTY, seed=1), painted(EMPTY, seed=2))


@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_images_are_square_and_rgb(size: int) -> None:
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
    thing: str, change: dict[str, Any], colour: tuple[int, int, int]
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


# --- The tokenizer reads every caption in few tokens and any other text at all ---


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_a_word_of_the_captions_is_one_token(tokenizer: CLIPTokenizer) -> None:
    words = tokenizer.tokenize("a red house, pine trees at sunset")
    assert words == [
        f"{w}</w>" for w in ("a", "red", "house", ",", "pine", "trees", "at", "sunset")
    ]


def test_captions_fit(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(0)
    texts = [caption(sample_scene(rng), rng) for _ in range(500)]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= TOKENS


def test_unknown_words_are_spelt_out(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("Zürich 2024 🚀").input_ids
    assert tokenizer.eos_token_id not in ids[1:-1]


def test_ids_are_padded_and_cut(tokenizer: CLIPTokenizer) -> None:
    ids = tokens(tokenizer, ["", "hills " * 100])
    assert ids.shape == (2, TOKENS)
    assert ids[:, 0].eq(tokenizer.bos_token_id).all()
    assert ids[:, -1].eq(tokenizer.eos_token_id).all()


@pytest.mark.long
def test_it_comes_back_from_disk_the_same(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    text = "violet hills, a starry sky & more"
    assert CLIPTokenizer.from_pretrained(tmp_path)(text) == tokenizer(text)
