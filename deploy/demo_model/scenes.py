"""Draws the demo model's images: small landscapes in a flat, anti-aliased style.

A `Scene` says what is to be seen, `sample_scene` draws one at random and `draw` paints it.
Everything is a function of the generator passed in, so one seed is one image. The objects
are deliberately large (a house is about 30 of 128 pixels wide): the diffusion model works on
a 16x16 grid, and what is smaller than a cell or two of it cannot be learnt in a CPU's hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Final, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

Time = Literal["noon", "sunset", "night", "dawn", "storm"]
Land = Literal["snowy", "green", "desert", "purple", "rocky"]
Relief = Literal["mountains", "hills"]
Water = Literal["lake", "river"]
FlowerColour = Literal["red", "yellow", "white", "blue"]
HouseColour = Literal["red", "white", "blue"]

TIMES: Final[tuple[Time, ...]] = get_args(Time)
LANDS: Final[tuple[Land, ...]] = get_args(Land)
RELIEFS: Final[tuple[Relief, ...]] = get_args(Relief)
WATERS: Final[tuple[Water, ...]] = get_args(Water)
FLOWER_COLOURS: Final[tuple[FlowerColour, ...]] = get_args(FlowerColour)
HOUSE_COLOURS: Final[tuple[HouseColour, ...]] = get_args(HouseColour)

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """What an image shows. None or False: the thing is not in the image."""

    time: Time
    land: Land
    relief: Relief
    sun: bool = False
    moon: bool = False
    stars: bool = False
    water: Water | None = None
    flowers: FlowerColour | None = None
    house: HouseColour | None = None
    trees: bool = False


@dataclass(frozen=True, slots=True)
class _Light:
    """How a time of day colours sky and land: sky from zenith to horizon, and a tint."""

    sky: tuple[Colour, Colour]
    tint: Colour
    strength: float
    """How far colours on the ground move towards their product with the tint, 0 to 1."""


_LIGHT: Final[dict[Time, _Light]] = {
    "noon": _Light(((64, 142, 228), (186, 224, 250)), (255, 255, 255), 0.0),
    "sunset": _Light(((98, 40, 112), (255, 140, 48)), (255, 166, 122), 0.6),
    "night": _Light(((8, 12, 44), (34, 46, 98)), (84, 98, 160), 0.72),
    "dawn": _Light(((152, 186, 236), (255, 202, 208)), (255, 214, 216), 0.6),
    "storm": _Light(((54, 60, 70), (122, 130, 138)), (146, 154, 164), 0.8),
}

# Far ridge, near ridge and ground of each land in white light.
_LAND: Final[dict[Land, tuple[Colour, Colour, Colour]]] = {
    "snowy": ((196, 214, 238), (222, 234, 250), (244, 249, 255)),
    "green": ((84, 148, 96), (72, 158, 70), (98, 188, 76)),
    "desert": ((206, 146, 84), (226, 172, 96), (244, 204, 126)),
    "purple": ((112, 78, 156), (136, 88, 176), (166, 112, 202)),
    "rocky": ((104, 100, 98), (122, 114, 106), (144, 134, 122)),
}

_FLOWER: Final[dict[FlowerColour, Colour]] = {
    "red": (232, 34, 44),
    "yellow": (255, 222, 24),
    "white": (255, 255, 255),
    "blue": (52, 92, 250),
}

_HOUSE: Final[dict[HouseColour, Colour]] = {
    "red": (206, 46, 40),
    "white": (248, 246, 240),
    "blue": (52, 106, 214),
}


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene; every choice is independent but for the lights in the sky."""
    time = TIMES[rng.integers(len(TIMES))]
    sun = time in ("noon", "sunset", "dawn") and bool(rng.random() < 0.6)
    moon = time == "night" and bool(rng.random() < 0.6)
    stars = time == "night" and bool(rng.random() < 0.5)
    return Scene(
        time=time,
        land=LANDS[rng.integers(len(LANDS))],
        relief=RELIEFS[rng.integers(len(RELIEFS))],
        sun=sun,
        moon=moon,
        stars=stars,
        water=WATERS[rng.integers(len(WATERS))] if rng.random() < 0.55 else None,
        flowers=FLOWER_COLOURS[rng.integers(len(FLOWER_COLOURS))] if rng.random() < 0.5 else None,
        house=HOUSE_COLOURS[rng.integers(len(HOUSE_COLOURS))] if rng.random() < 0.45 else None,
        trees=bool(rng.random() < 0.45),
    )


def draw(scene: Scene, rng: np.random.Generator, size: int = 128) -> Image.Image:
    """Paints the scene as an RGB image of size x size pixels; `rng` places the things."""
    return _Painter(scene, rng, size).paint()


class _Painter:
    """Paints one scene at twice the size, on coordinates from 0 to 1, and halves it."""

    def __init__(self, scene: Scene, rng: np.random.Generator, size: int) -> None:
        self._scene = scene
        self._rng = rng
        self._light = _LIGHT[scene.time]
        self._extent = 2 * size
        self._image = self._sky()
        self._pen = ImageDraw.Draw(self._image)

    def paint(self) -> Image.Image:
        scene = self._scene
        near = self._rng.uniform(0.55, 0.59)
        house_side = -1 if self._rng.random() < 0.5 else 1
        light_x = self._rng.uniform(0.2, 0.8)
        self._lights_in_the_sky(light_x)
        self._clouds(light_x)
        self._ridge(near - 0.07, _LAND[scene.land][0], far=True)
        self._ridge(near, _LAND[scene.land][1], far=False)
        self._ground(near + 0.02)
        if scene.water is not None:
            self._water(near + 0.02)
        if scene.trees:
            self._trees(0.5 - 0.31 * house_side, near + 0.1)
        if scene.house is not None:
            self._house(0.5 + 0.28 * house_side, near + 0.13, _HOUSE[scene.house])
        if scene.flowers is not None:
            self._flowers(_FLOWER[scene.flowers])
        if scene.time == "storm":
            self._rain()
        return self._image.reduce(2)

    def _lit(self, colour: Colour, share: float = 1.0) -> Colour:
        """The colour in this time's light; share below 1 keeps more of the thing's own."""
        tint, strength = self._light.tint, self._light.strength * share
        red, green, blue = (
            round(c * (1 - strength) + c * t / 255 * strength)
            for c, t in zip(colour, tint, strict=True)
        )
        return red, green, blue

    def _sky(self) -> Image.Image:
        top, bottom = (np.array(c, dtype=np.float32) for c in self._light.sky)
        height = np.clip(np.linspace(0, 1.6, self._extent, dtype=np.float32), 0, 1)[:, None]
        column = np.rint(top * (1 - height) + bottom * height).astype(np.uint8)
        rows = np.broadcast_to(column[:, None, :], (self._extent, self._extent, 3))
        return Image.fromarray(np.ascontiguousarray(rows))

    def _polygon(self, points: list[Point], colour: Colour) -> None:
        self._pen.polygon([(x * self._extent, y * self._extent) for x, y in points], fill=colour)

    def _disc(self, x: float, y: float, rx: float, colour: Colour, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        box = ((x - rx), (y - ry), (x + rx), (y + ry))
        self._pen.ellipse([v * self._extent for v in box], fill=colour)

    def _box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self._pen.rectangle([v * self._extent for v in (x0, y0, x1, y1)], fill=colour)

    def _lights_in_the_sky(self, x: float) -> None:
        y = self._rng.uniform(0.12, 0.2)
        if self._scene.stars:
            for _ in range(20):
                r = self._rng.uniform(0.01, 0.017)
                sx, sy = self._rng.uniform(0.02, 0.98), self._rng.uniform(0.02, 0.42)
                self._disc(sx, sy, r, (255, 252, 226))
        if self._scene.sun:
            core, halo = {
                "noon": ((255, 238, 92), (172, 214, 240)),
                "sunset": ((255, 226, 96), (236, 104, 66)),
                "dawn": ((255, 246, 196), (250, 206, 190)),
            }[self._scene.time]
            y += {"noon": 0.0, "sunset": 0.1, "dawn": 0.08}[self._scene.time]
            self._disc(x, y, 0.115, halo)
            self._disc(x, y, 0.085, core)
        if self._scene.moon:
            self._disc(x, y, 0.085, (246, 242, 214))
            self._disc(x + 0.03, y - 0.02, 0.018, (222, 216, 186))
            self._disc(x - 0.03, y + 0.025, 0.022, (222, 216, 186))

    def _clouds(self, sun_x: float) -> None:
        shade = {"noon": (250, 252, 255), "storm": (38, 42, 50)}.get(self._scene.time)
        if shade is None:
            return
        stormy = self._scene.time == "storm"
        for place in (0.1, 0.5, 0.9) if stormy else (0.2 if sun_x > 0.5 else 0.8,):
            x = place + self._rng.uniform(-0.08, 0.08)
            y = self._rng.uniform(0.05, 0.12) if stormy else self._rng.uniform(0.1, 0.28)
            scale = self._rng.uniform(1.3, 1.6) if stormy else self._rng.uniform(0.7, 0.9)
            for dx, dy, r in ((-0.1, 0.015, 0.05), (0.0, -0.015, 0.075), (0.1, 0.01, 0.055)):
                self._disc(x + dx * scale, y + dy * scale, r * scale, shade)
            self._box(x - 0.1 * scale, y, x + 0.1 * scale, y + 0.063 * scale, shade)

    def _ridge(self, base: float, colour: Colour, *, far: bool) -> None:
        if self._scene.relief == "mountains":
            self._peaks(base, colour, far=far)
        else:
            self._rolling(base, colour, far=far)

    def _peaks(self, base: float, colour: Colour, *, far: bool) -> None:
        centres = (0.14, 0.5, 0.86) if far else (-0.04, 0.32, 0.68, 1.04)
        snow = self._scene.land in ("snowy", "rocky") and far
        shade = _darker(colour)
        for centre in centres:
            x = centre + self._rng.uniform(-0.06, 0.06)
            rise = self._rng.uniform(0.24, 0.3) if far else self._rng.uniform(0.07, 0.12)
            half, top = rise * self._rng.uniform(0.85, 1.05), base - rise
            half = max(half, 0.15)
            self._polygon(
                [(x - half, base + 0.1), (x, top), (x + half, base + 0.1)], self._lit(colour)
            )
            self._polygon(
                [(x, top), (x + half, base + 0.1), (x + 0.1 * half, base + 0.1)], self._lit(shade)
            )
            if snow:
                cut = 0.3
                reach = half * cut * rise / (rise + 0.1) * 1.0
                self._polygon(
                    [
                        (x, top),
                        (x - reach, top + cut * rise),
                        (x - 0.3 * reach, top + 0.75 * cut * rise),
                        (x + 0.3 * reach, top + 1.1 * cut * rise),
                        (x + reach, top + cut * rise),
                    ],
                    self._lit((255, 255, 255)),
                )

    def _rolling(self, base: float, colour: Colour, *, far: bool) -> None:
        xs = np.linspace(0, 1, 48)
        phase = self._rng.uniform(0, 2 * pi)
        waves = self._rng.uniform(1.1, 1.5) if far else self._rng.uniform(1.5, 2.0)
        height = 0.07 if far else 0.035
        ys = base - (0.05 if far else 0.02) - height * np.sin(2 * pi * waves * xs + phase)
        line = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
        self._polygon([(0.0, 1.0), *line, (1.0, 1.0)], self._lit(colour))

    def _ground(self, top: float) -> None:
        tilt = self._rng.uniform(-0.02, 0.02)
        colour = _LAND[self._scene.land][2]
        self._polygon(
            [(0, top + tilt), (0.5, top + 0.01), (1, top - tilt), (1, 1), (0, 1)], self._lit(colour)
        )
        stones = [
            (self._rng.uniform(0.03, 0.97), self._rng.uniform(top + 0.06, 0.98)) for _ in range(9)
        ]
        if self._scene.land == "rocky":
            for x, y in stones:
                r = 0.02 + 0.03 * (y - top)
                self._polygon(
                    [
                        (x - 1.3 * r, y + r),
                        (x - 0.7 * r, y - 0.6 * r),
                        (x + 0.3 * r, y - r),
                        (x + 1.3 * r, y + r),
                    ],
                    self._lit((92, 86, 82)),
                )

    def _water(self, top: float) -> None:
        water, shine = self._lit((44, 122, 206), 0.8), self._lit((138, 196, 240), 0.8)
        if self._scene.water == "lake":
            x, y = 0.5 + self._rng.uniform(-0.06, 0.06), 0.77 + self._rng.uniform(-0.015, 0.015)
            rx, ry = self._rng.uniform(0.3, 0.36), self._rng.uniform(0.075, 0.095)
            self._disc(x, y, rx, water, ry)
            for dx, dy in ((-0.1, -0.02), (0.08, 0.015)):
                self._box(x + dx - 0.07, y + dy - 0.006, x + dx + 0.07, y + dy + 0.006, shine)
            return
        bend = self._rng.uniform(-0.1, 0.1)
        depth = np.linspace(0, 1, 24)
        middle = 0.5 + bend * np.sin(pi * depth * 1.5)
        half = 0.025 + 0.15 * depth**1.5
        ys = top + 0.01 + (1 - top) * depth
        left = [(float(m - h), float(y)) for m, h, y in zip(middle, half, ys, strict=True)]
        right = [(float(m + h), float(y)) for m, h, y in zip(middle, half, ys, strict=True)]
        self._polygon([*left, *reversed(right)], water)
        for k in (10, 15, 20):
            m, h, y = middle[k], 0.45 * half[k], ys[k]
            self._box(m - h, y - 0.006, m + h, y + 0.006, shine)

    def _trees(self, x: float, base: float) -> None:
        snow = self._scene.land == "snowy"
        for dx, dy in ((-0.1, 0.0), (0.1, 0.01), (0.0, 0.05)):
            tx = x + dx + self._rng.uniform(-0.015, 0.015)
            foot = base + dy
            height = self._rng.uniform(0.26, 0.33)
            self._box(tx - 0.013, foot - 0.05, tx + 0.013, foot + 0.025, self._lit((104, 66, 38)))
            for level, half in ((0.0, 0.085), (0.33, 0.068), (0.62, 0.048)):
                y = foot - 0.02 - level * height * 0.8
                green = (22, 92, 56) if level != 0.33 else (30, 110, 66)
                self._polygon(
                    [(tx - half, y), (tx, y - height * 0.5), (tx + half, y)], self._lit(green, 0.9)
                )
            if snow:
                y = foot - 0.02 - 0.62 * height * 0.8 - height * 0.5
                self._polygon(
                    [(tx - 0.024, y + 0.25 * height), (tx, y), (tx + 0.024, y + 0.25 * height)],
                    self._lit((255, 255, 255)),
                )

    def _house(self, x: float, base: float, colour: Colour) -> None:
        x += self._rng.uniform(-0.03, 0.03)
        wide, high = self._rng.uniform(0.125, 0.145), self._rng.uniform(0.14, 0.16)
        roof = self._lit((84, 54, 46), 0.8)
        self._box(x + 0.5 * wide, base - high - 0.12, x + 0.5 * wide + 0.035, base - high, roof)
        self._box(x - wide, base - high, x + wide, base, self._lit(colour, 0.55))
        self._polygon(
            [
                (x - wide - 0.03, base - high),
                (x, base - high - 0.12),
                (x + wide + 0.03, base - high),
            ],
            roof,
        )
        dark = self._scene.time in ("night", "storm")
        pane = (255, 224, 110) if dark else self._lit((150, 204, 236))
        for dx in (-0.55, 0.55):
            self._box(x + dx * wide - 0.027, base - 0.105, x + dx * wide + 0.027, base - 0.05, pane)
        self._box(x - 0.024, base - 0.085, x + 0.024, base, roof)

    def _flowers(self, colour: Colour) -> None:
        leaf, head = self._lit((44, 124, 48), 0.7), self._lit(colour, 0.35)
        heart = self._lit((255, 190, 20) if colour != _FLOWER["yellow"] else (170, 96, 20), 0.35)
        for side in (0.19, 0.81):
            x, y = side + self._rng.uniform(-0.03, 0.03), 0.915 + self._rng.uniform(-0.01, 0.01)
            self._disc(x, y + 0.01, 0.17, leaf, 0.07)
            for dx, dy in (
                (-0.11, 0.005),
                (-0.055, -0.04),
                (0.0, 0.02),
                (0.055, -0.04),
                (0.11, 0.005),
                (-0.055, 0.045),
                (0.055, 0.045),
            ):
                hx = x + dx + self._rng.uniform(-0.012, 0.012)
                hy = y + dy + self._rng.uniform(-0.01, 0.01)
                self._disc(hx, hy, 0.033, head)
                self._disc(hx, hy, 0.011, heart)

    def _rain(self) -> None:
        for column in range(12):
            x = (column + self._rng.uniform(0.2, 0.8)) / 12
            y = self._rng.uniform(0.22, 0.85)
            line = [v * self._extent for v in (x, y, x - 0.025, y + 0.08)]
            self._pen.line(line, fill=self._lit((214, 226, 240), 0.3), width=self._extent // 80)


def _darker(colour: Colour) -> Colour:
    red, green, blue = (round(0.86 * c) for c in colour)
    return red, green, blue
