"""Pictures in terminals: the right way is chosen, and what is written is what terminals read."""

import base64
import io
import re

import pytest
from PIL import Image
from rich.console import Console

from darkroom.cli.pictures import Preview, choose, half_blocks, show


def png(width: int = 8, height: int = 8, colour: tuple[int, int, int] = (255, 0, 0)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


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
        ({"KITTY_WINDOW_ID": "1"}, Preview.KITTY),
        ({"TERM_PROGRAM": "ghostty"}, Preview.KITTY),
        ({"TERM_PROGRAM": "iTerm.app"}, Preview.ITERM2),
        ({"TERM_PROGRAM": "WezTerm"}, Preview.ITERM2),
        ({"KITTY_WINDOW_ID": "1", "TMUX": "/tmp/tmux"}, Preview.BLOCKS),
        ({"TERM_PROGRAM": "WezTerm", "TERM": "screen-256color"}, Preview.BLOCKS),
        ({}, Preview.BLOCKS),
    ],
)
def test_the_best_way_is_taken(environ: dict[str, str], expected: Preview) -> None:
    assert choose(Preview.AUTO, terminal()[0], environ) is expected


def test_where_there_are_no_colours_there_are_no_pictures() -> None:
    assert choose(Preview.AUTO, terminal("256")[0], {}) is Preview.OFF
    assert choose(Preview.AUTO, terminal(colour=False)[0], {"KITTY_WINDOW_ID": "1"}) is Preview.OFF
    assert choose(Preview.AUTO, Console(file=io.StringIO()), {}) is Preview.OFF


def test_what_is_asked_for_by_name_is_taken() -> None:
    assert choose(Preview.KITTY, terminal("256")[0], {}) is Preview.KITTY
    assert choose(Preview.OFF, terminal()[0], {"KITTY_WINDOW_ID": "1"}) is Preview.OFF


@pytest.mark.parametrize(
    ("size", "cells"), [((64, 64), (32, 16)), ((400, 100), (40, 5)), ((100, 400), (8, 16))]
)
def test_half_blocks_keep_the_proportions(size: tuple[int, int], cells: tuple[int, int]) -> None:
    drawn = half_blocks(png(*size))
    assert drawn is not None
    lines = drawn.plain.split("\n")
    assert (len(lines[0]), len(lines)) == cells
    assert set(drawn.plain) == {"▀", "\n"}


def test_half_blocks_have_the_pictures_colours() -> None:
    console, file = terminal()
    show([png(colour=(1, 2, 3))], Preview.BLOCKS, console)
    assert "\x1b[38;2;1;2;3;48;2;1;2;3m" in file.getvalue()


def test_kitty_gets_a_png_in_chunks() -> None:
    console, file = terminal()
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    data = io.BytesIO()
    noise.save(data, "PNG")
    show([data.getvalue()], Preview.KITTY, console)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", file.getvalue())
    assert len(chunks) > 2
    assert chunks[0][0].startswith("a=T,f=100,")
    assert [head.endswith("m=1") for head, _ in chunks] == [True] * (len(chunks) - 1) + [False]
    assert all(len(body) <= 4096 for _, body in chunks)
    sent = base64.b64decode("".join(body for _, body in chunks))
    with Image.open(io.BytesIO(sent)) as picture:
        assert picture.size == (200, 200)
        assert picture.convert("RGB").tobytes() == noise.tobytes()


def test_iterm2_gets_several_pictures_as_one_strip() -> None:
    console, file = terminal()
    show([png(64, 64), png(64, 64)], Preview.ITERM2, console)
    match = re.search(r"\x1b\]1337;File=inline=1;size=(\d+);height=16:([^\a]*)\a", file.getvalue())
    assert match is not None
    sent = base64.b64decode(match[2])
    assert len(sent) == int(match[1])
    with Image.open(io.BytesIO(sent)) as picture:
        assert picture.size == (64 + 2 + 64, 64)


def test_a_damaged_file_is_no_reason_to_fail() -> None:
    console, file = terminal()
    for way in (Preview.BLOCKS, Preview.KITTY, Preview.ITERM2):
        show([b"\x89PNG\r\n\x1a\n damaged"], way, console)
    assert "\x1b_G" not in file.getvalue()
    assert half_blocks(b"GIF89a") is None
