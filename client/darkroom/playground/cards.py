"""A picture with its facts and its buttons, as the tabs Generate, Search and History show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import streamlit as st

import darkroom
from darkroom.playground import actions, pictures, stars, words
from darkroom.playground.actions import ACTIONS

_SMALL, _LARGE = 170, 304
"""Pixels of a card's width; two small ones fit on a phone."""


@dataclass(frozen=True)
class Picture:
    """What a card needs to know of an image."""

    id: str
    job_id: str
    prompt: str
    seed: int
    width: int
    height: int
    starred: bool
    content_type: str
    file_name: str
    note: str = ""
    """What the tab has to say of it, such as a score."""

    @classmethod
    def of(cls, image: darkroom.Image, note: str = "") -> Self:
        """From an image as lists and searches give it."""
        return cls._of(image, image.job_id or "", image.prompt or "", note)

    @classmethod
    def of_job(cls, job: darkroom.Job) -> list[Self]:
        """The finished pictures of a job."""
        return [cls._of(image, job.id, job.prompt, "") for image in job.images]

    @classmethod
    def _of(cls, image: darkroom.Image, job_id: str, prompt: str, note: str) -> Self:
        return cls(
            id=image.id,
            job_id=job_id,
            prompt=prompt,
            seed=image.seed,
            width=image.width,
            height=image.height,
            starred=image.starred,
            content_type=image.content_type,
            file_name=image.file_name,
            note=note,
        )


def show_large(found: Sequence[Picture]) -> None:
    """Draws new results: the file itself, and every button by its name."""
    with st.container(horizontal=True, gap="small"):
        for picture in stars.still_there(found):
            with st.container(width=_LARGE, key=f"card-large-{picture.id}", gap="small"):
                pictures.show(picture.id, picture.prompt)
                st.caption(f"seed **{picture.seed}** · {picture.width} × {picture.height}")
                with st.container(horizontal=True, gap="xsmall"):
                    # In this order they fill their rows.
                    _buttons(picture, "again", "vary")
                    _star(picture, by_name=True)
                    _buttons(picture, "initial", "reproduce", "receipt")
                    _download(picture, by_name=True)


def _buttons(picture: Picture, *names: str) -> None:
    for name in names:
        action = ACTIONS[name]
        st.button(
            action.label,
            key=f"{name}-{picture.id}",
            icon=action.icon,
            help=action.help,
            on_click=actions.act,
            args=(name, picture),
        )


def show_small(found: Sequence[Picture], offered: Sequence[str]) -> None:
    """Draws many pictures: thumbnails, and the buttons in a menu."""
    there = stars.still_there(found)
    pictures.fetch_thumbnails(picture.id for picture in there)
    with st.container(horizontal=True, gap="small"):
        for picture in there:
            with st.container(width=_SMALL, key=f"card-small-{picture.id}", gap="xsmall"):
                st.image(pictures.thumbnail(picture.id), width="stretch", alt=picture.prompt)
                st.caption(words.escape(words.short(picture.prompt, 60)))
                st.caption(" · ".join(filter(None, [f"seed {picture.seed}", picture.note])))
                with st.container(horizontal=True, gap="xsmall"):
                    _star(picture, by_name=False)
                    _download(picture, by_name=False)
                    key = f"menu-{picture.id}"
                    st.menu_button(
                        "More",
                        list(offered),
                        key=key,
                        format_func=lambda action: (
                            f"{ACTIONS[action].icon} {ACTIONS[action].label}"
                        ),
                        on_click=_chosen,
                        args=(key, picture),
                        type="tertiary",
                    )


def _chosen(key: str, picture: Picture) -> None:
    actions.act(st.session_state[key], picture)


def _star(picture: Picture, *, by_name: bool) -> None:
    starred = stars.is_starred(picture)
    # The icon font has no filled star: its two stars look alike.
    sign = ":orange[★]" if starred else "☆"
    name = "Starred" if starred else "Star"
    st.button(
        f"{sign} {name}" if by_name else sign,
        key=f"star-{picture.id}",
        help=f"{name}. Stars lift a prompt among the ideas, and Search can ask for them.",
        type="secondary" if by_name else "tertiary",
        on_click=stars.turn,
        args=(picture, not starred),
    )


def _download(picture: Picture, *, by_name: bool) -> None:
    icon = ":material/download:"
    st.download_button(
        "Download" if by_name else icon,
        lambda: pictures.content(picture.id),
        file_name=picture.file_name,
        mime=picture.content_type,
        key=f"download-{picture.id}",
        icon=icon if by_name else None,
        help=None if by_name else "Download the picture; its receipt is inside.",
        type="secondary" if by_name else "tertiary",
        on_click="ignore",
    )
