"""Images in terminals: the right way is chosen, and terminals can read what is written."""

import base64
import io
import re

import pytest
from PIL import Image
from rich.console import Console

from darkroom.cli.previews import PreviewMode, choose, half_blocks, show
from tests.images import encode, png


def terminal(system: str = "truecolor", *, colour: bool = True) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file,
        force_terminal=True,
        color_system=system,  # type: ignore[arg-type]
        no_color=not colour,
        width=100,
        _environ={"TERM": "xterm-256color"},
    )
    return console, file


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"KITTY_WINDOW_ID": "1"}, PreviewMode.KITTY),
        ({"TERM_PROGRAM": "ghostty"}, PreviewMode.KITTY),
        ({"TERM_PROGRAM": "iTerm.app"}, PreviewMode.ITERM2),
        ({"TERM_PROGRAM": "WezTerm"}, PreviewMode.ITERM2),
        ({"KITTY_WINDOW_ID": "1", "TMUX": "/tmp/tmux"}, PreviewMode.BLOCKS),
        ({"TERM_PROGRAM": "WezTerm", "TERM": "screen-256color"}, PreviewMode.BLOCKS),
        ({}, PreviewMode.BLOCKS),
    ],
)
def test_the_best_way_is_taken(environ: dict[str, str], expected: PreviewMode) -> None:
    assert choose(PreviewMode.AUTO, terminal()[0], environ) is expected


def test_without_colours_there_are_no_previews() -> None:
    assert choose(PreviewMode.AUTO, terminal("256")[0], {}) is PreviewMode.OFF
    assert (
        choose(PreviewMode.AUTO, terminal(colour=False)[0], {"KITTY_WINDOW_ID": "1"})
        is PreviewMode.OFF
    )
    assert choose(PreviewMode.AUTO, Console(file=io.StringIO()), {}) is PreviewMode.OFF


def test_what_is_asked_for_by_name_is_taken() -> None:
    assert choose(PreviewMode.KITTY, terminal("256")[0], {}) is PreviewMode.KITTY
    assert choose(PreviewMode.OFF, terminal()[0], {"KITTY_WINDOW_ID": "1"}) is PreviewMode.OFF


@pytest.mark.parametrize(
    ("size", "cells"), [((64, 64), (32, 16)), ((400, 100), (40, 5)), ((100, 400), (8, 16))]
)
def test_half_blocks_keep_the_proportions(size: tuple[int, int], cells: tuple[int, int]) -> None:
    drawn = half_blocks(png("red", *size))
    assert drawn is not None
    lines = drawn.plain.split("\n")
    assert (len(lines[0]), len(lines)) == cells
    assert set(drawn.plain) == {"▀", "\n"}


def test_half_blocks_have_the_images_colours() -> None:
    console, file = terminal()
    show([png("rgb(1, 2, 3)", 8, 8)], PreviewMode.BLOCKS, console)
    assert "\x1b[38;2;1;2;3;48;2;1;2;3m" in file.getvalue()


def test_kitty_gets_a_png_in_chunks() -> None:
    console, file = terminal()
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    show([encode(noise)], PreviewMode.KITTY, console)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", file.getvalue())
    assert len(chunks) > 2
    assert chunks[0][0].startswith("a=T,f=100,")
    assert [head.endswith("m=1") for head, _ in chunks] == [True] * (len(chunks) - 1) + [False]
    assert all(len(body) <= 4096 for _, body in chunks)
    sent = base64.b64decode("".join(body for _, body in chunks))
    with Image.open(io.BytesIO(sent)) as image:
        assert image.size == (200, 200)
        assert image.convert("RGB").tobytes() == noise.tobytes()


def test_iterm2_gets_several_images_as_one_strip() -> None:
    console, file = terminal()
    show([png(), png()], PreviewMode.ITERM2, console)
    match = re.search(r"\x1b\]1337;File=inline=1;size=(\d+);height=16:([^\a]*)\a", file.getvalue())
    assert match is not None
    sent = base64.b64decode(match[2])
    assert len(sent) == int(match[1])
    with Image.open(io.BytesIO(sent)) as image:
        assert image.size == (64 + 2 + 64, 64)


def test_a_damaged_file_is_no_reason_to_fail() -> None:
    console, file = terminal()
    for way in (PreviewMode.BLOCKS, PreviewMode.KITTY, PreviewMode.ITERM2):
        show([b"\x89PNG\r\n\x1a\n damaged"], way, console)
    assert "\x1b_G" not in file.getvalue()
    assert half_blocks(b"GIF89a") is None
