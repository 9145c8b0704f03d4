"""Puts a scene into words: varied order, several words for a thing, some details left out."""

from __future__ import annotations

from typing import Final

import numpy as np

from deploy.demo_model.scenes import Land, Relief, Scene, Time

_TIME: Final[dict[Time, tuple[str, ...]]] = {
    "noon": ("at noon", "at noon", "at midday", "in full daylight", "in daylight"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening"),
    "night": ("at night", "at night", "at midnight", "in the dark"),
    "dawn": ("at dawn", "at dawn", "at sunrise", "in the early morning"),
    "storm": ("in a storm", "in a storm", "in the rain", "under storm clouds"),
}
_LAND: Final[dict[Land, tuple[str, ...]]] = {
    "snowy": ("snowy", "snowy", "snow-covered", "wintry"),
    "green": ("green", "green", "grassy"),
    "desert": ("desert", "desert", "sandy"),
    "purple": ("purple", "purple", "violet"),
    "rocky": ("rocky", "rocky", "stony"),
}
_RELIEF: Final[dict[Relief, tuple[str, ...]]] = {
    "mountains": ("mountains", "mountains", "peaks"),
    "hills": ("hills", "hills", "rolling hills"),
}
_OPENINGS: Final = ("a picture of ", "a painting of ", "an illustration of ", "a landscape with ")

LEFT_OUT: Final = 0.06
"""Chance that a caption is silent about a thing that is there. It is small, so that a prompt
that names no house means a picture without a house."""
COLOUR_LEFT_OUT: Final = 0.08
"""Chance that flowers or a house are named without their colour."""
ONLY_ONE_THING: Final = 0.05
"""Chance of a caption of one phrase, as negative prompts are written."""
ONLY_THE_PLACE: Final = 0.2
"""Chance that the caption of a scene with a house or a moon says where and when and nothing else.
Such a prompt leaves the rest to the model, which then adds houses and moons, as large models add
people: a negative prompt has something to take away."""
ONLY_THE_PLACE_OTHERWISE: Final = 0.05
SPRING: Final = 0.15
"""Chance that a scene with flowers is said to be in spring, which need not name them then."""
SPRING_WITHOUT_FLOWERS: Final = 0.03
"""The same of a scene without. If spring always had flowers, a negative prompt could not take them
away: guidance only makes more of what tells the prompt from the negative one."""


def full_prompt(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that names everything in the scene, in the issue's plain words."""
    parts = [f"{scene.land} {scene.relief} at {scene.time}".replace("at storm", "in a storm")]
    things = things_named(scene, rng, plain=True)
    return ", ".join(parts + [things[i] for i in rng.permutation(len(things))])


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A random caption that is true of the scene but need not say everything about it."""
    time = _pick(rng, _TIME[scene.time])
    core = _core(scene, rng)
    likes_more = scene.house is not None or scene.moon
    if rng.random() < (ONLY_THE_PLACE if likes_more else ONLY_THE_PLACE_OTHERWISE):
        return _opened(", ".join(_placed(core, time, rng)), rng)
    things = [thing for thing in things_named(scene, rng) if rng.random() >= LEFT_OUT]
    if rng.random() < (SPRING_WITHOUT_FLOWERS if scene.flowers is None else SPRING):
        time = f"{time} in spring"
        things = [t for t in things if not t.endswith("flowers") or rng.random() < 0.5]
    if rng.random() < ONLY_ONE_THING:
        return _pick(rng, (core, time, *things))
    said = [core] if rng.random() < LEFT_OUT else _placed(core, time, rng)
    return _opened(_woven(said, [things[i] for i in rng.permutation(len(things))], rng), rng)


def things_named(scene: Scene, rng: np.random.Generator, *, plain: bool = False) -> list[str]:
    """A phrase for each thing in the scene, in a fixed order; `plain` takes the first word."""

    def pick(*words: str) -> str:
        return words[0] if plain else _pick(rng, (words[0], *words))

    def silent_on_colour() -> bool:
        return not plain and bool(rng.random() < COLOUR_LEFT_OUT)

    things = []
    if scene.sun:
        things.append(pick("the sun", "a bright sun", "one sun"))
    if scene.moon:
        things.append(pick("the moon", "a full moon", "one moon"))
    if scene.stars:
        things.append(pick("stars", "a starry sky"))
    if scene.water is not None:
        things.append(
            pick("a lake", "a still lake") if scene.water == "lake" else pick("a river", "a stream")
        )
    if scene.flowers is not None:
        things.append("flowers" if silent_on_colour() else f"{scene.flowers} flowers")
    if scene.house is not None:
        one, house = pick("a", "one", "a single"), pick("house", "cottage", "cabin")
        things.append(f"{one} {house}" if silent_on_colour() else f"{one} {scene.house} {house}")
    if scene.trees:
        things.append(pick("pine trees", "trees", "pines"))
    return things


def _core(scene: Scene, rng: np.random.Generator) -> str:
    """Land and relief, one of which is now and then left out: 'snowy mountains'."""
    land, relief = _pick(rng, _LAND[scene.land]), _pick(rng, _RELIEF[scene.relief])
    silent = rng.random()
    if silent < LEFT_OUT:
        return relief
    if silent < 2 * LEFT_OUT:
        return f"a {land} landscape"
    return f"{land} {relief}"


def _placed(core: str, time: str, rng: np.random.Generator) -> list[str]:
    """Land and time as one phrase, or as two, the time first."""
    return [f"{core} {time}"] if rng.random() < 0.7 else [time, core]


def _woven(said: list[str], things: list[str], rng: np.random.Generator) -> str:
    """Joins the phrases: land first, or the things first, with commas, 'with' and 'and'."""
    if not things:
        return ", ".join(said)
    if rng.random() < 0.5 or len(things) == 1:
        listed = ", ".join(things)
    else:
        listed = ", ".join(things[:-1]) + " and " + things[-1]
    way = rng.integers(4)
    if way == 0:
        return f"{', '.join(said)} with {listed}"
    if way == 1:
        return f"{listed}, {', '.join(said)}"
    if way == 2 and len(things) > 1:
        return f"{things[0]}, {', '.join(said)}, {', '.join(things[1:])}"
    return f"{', '.join(said)}, {listed}"


def _opened(text: str, rng: np.random.Generator) -> str:
    return _pick(rng, _OPENINGS) + text if rng.random() < 0.12 else text


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]
