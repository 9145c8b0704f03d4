"""Images as cards: their facts, and the actions that every tab offers for them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from darkroom import Job
from darkroom.playground import dialogs, filling, form, submission
from darkroom.playground.connection import (
    connect,
    image_file,
    prefetch_thumbnails,
    show_image,
    thumbnail,
)
from darkroom.playground.formatting import escape, short
from darkroom.playground.state import (
    SEARCH_IMAGE,
    Card,
    delete,
    errors_shown_on_top,
    existing,
    is_starred,
    notify,
    open_tab,
    set_star,
    show_job,
)

_SMALL = 170
"""Width of a card in pixels; two small ones fit on a phone."""
_VARY_STRENGTH = 0.5
PICK = "pick-{}"
"""Key of the checkbox that selects an image."""
_COMMON = ("again", "vary")
"""The actions that have a button of their own, where there is room."""
_REST = ("initial", "control", "upscale", "reuse", "like", "reproduce", "receipt", "delete")


def show_large(cards: Sequence[Card]) -> None:
    """Draw new results as large as there is room: the files themselves."""
    shown = existing(cards)
    with st.container(key=f"large-{columns_for(len(shown))}-{cards[0].id}"):
        for card in shown:
            with st.container(key=f"card-large-{card.id}", gap="xsmall"):
                with _opens(card, shown):
                    show_image(card.id, card.prompt)
                with _bar(card):
                    st.caption(f"seed {card.seed} · {card.width} × {card.height}", width="content")
                    for name in _COMMON:
                        _show_button(card, name)
                    _show_star_download_and_rest(card, _REST)


def columns_for(images: int) -> int:
    """In how many columns a job's images are drawn."""
    return 1 if images == 1 else 2 if images <= 4 else 4


def show_small(
    cards: Sequence[Card],
    *,
    selectable: bool = False,
    unfold: Callable[[str], None] | None = None,
) -> None:
    """Draw many images as thumbnails, with the actions in a menu, or to be selected.

    `unfold` shows an image's near-duplicates, or hides them again.
    """
    shown = existing(cards)
    prefetch_thumbnails(card.id for card in shown)
    with st.container(horizontal=True, gap="small"):
        for card in shown:
            with st.container(width=_SMALL, key=f"card-small-{card.id}", gap="xsmall"):
                with _opens(card, shown):
                    st.image(thumbnail(card.id), width="stretch", alt=card.prompt)
                if selectable:
                    st.checkbox(
                        f"Seed {card.seed}",
                        key=PICK.format(card.id),
                        persist_state="session",
                    )
                    continue
                st.caption(escape(short(card.prompt, 60)))
                st.caption(" · ".join(filter(None, [f"seed {card.seed}", escape(card.note)])))
                with _bar(card):
                    _show_star_download_and_rest(card, (*_COMMON, *_REST))
                if card.alike:
                    st.button(
                        f"{card.alike} like this",
                        key=f"unfold-{card.id}",
                        icon=":material/stacks:",
                        help="Show or hide the images of nearly the same prompt.",
                        on_click=unfold,
                        args=(card.id,),
                    )


@contextmanager
def _opens(card: Card, beside: Sequence[Card]) -> Iterator[None]:
    """Around an image: a click on it shows it large; the style sheet lays the button over it."""
    with st.container(key=f"shot-{card.id}"):
        yield
        st.button(
            f"Open {escape(short(card.prompt, 60))}, seed {card.seed}",
            key=f"open-{card.id}",
            type="tertiary",
            on_click=dialogs.open_image,
            args=(card, beside),
        )


def _bar(card: Card) -> DeltaGenerator:
    """A row of buttons, of which the style sheet shows the icons and screen readers the names."""
    return st.container(
        horizontal=True, gap=None, vertical_alignment="center", wrap=False, key=f"icons-{card.id}"
    )


def _show_button(card: Card, name: str) -> None:
    action = ACTIONS[name]
    st.button(
        action.label,
        key=f"{name}-{card.id}",
        icon=action.icon,
        help=f"**{action.label}.** {action.help}",
        type="tertiary",
        on_click=_run,
        args=(name, card),
    )


def _show_star_download_and_rest(card: Card, rest: Sequence[str]) -> None:
    starred = is_starred(card)
    st.button(
        "Remove star" if starred else "Star",
        key=f"star-{card.id}",
        # The icon font has no filled star: its two stars look alike.
        icon="⭐" if starred else ":material/star:",
        help="**Star.** Suggestions prefer starred prompts, and Search can filter by stars.",
        type="tertiary",
        on_click=set_star,
        args=(card, not starred),
    )
    st.download_button(
        "Download",
        lambda: image_file(card.id),
        file_name=card.file_name,
        mime=card.content_type,
        key=f"download-{card.id}",
        icon=":material/download:",
        help="**Download** the image, with its receipt inside.",
        type="tertiary",
        on_click="ignore",
    )
    key = f"menu-{card.id}"
    st.menu_button(
        "More",
        [name for name in rest if name != "control" or form.takes_control()],
        key=key,
        icon=":material/more_horiz:",
        format_func=lambda name: f"{ACTIONS[name].icon} {ACTIONS[name].label}",
        on_click=_run_chosen,
        args=(key, card),
        type="tertiary",
    )


@dataclass(frozen=True)
class Action:
    """A button's text, and what it does with the image."""

    label: str
    icon: str
    help: str
    run: Callable[[Card], None]


def _run_chosen(key: str, card: Card) -> None:
    _run(st.session_state[key], card)


def _run(name: str, card: Card) -> None:
    with errors_shown_on_top():
        ACTIONS[name].run(card)


def _fill_form(card: Card, job: Job) -> dict[str, object]:
    """Fill the form with the image's own settings, and return them."""
    settings = submission.settings_of(job)
    del settings["seeds"]
    settings |= {"seed": card.seed, "num_images": 1}
    for note in filling.fill(settings, job.kind):
        notify(escape(note), "warning")
    return settings


def _again(card: Card) -> None:
    job = connect().jobs.get(card.job_id)
    if job.kind == "upscale":
        _upscale_again(job)
    else:
        submission.submit(_fill_form(card, job))
    open_tab("Generate")


def _upscale_again(job: Job) -> None:
    hires, source = job.hires, job.init_image
    if hires is None or source is None:
        notify("The server does not say how this image was upscaled.")
        return
    choices: dict[str, Any] = {"scale": hires.scale, "method": hires.upscaler}
    if hires.strength is not None:
        choices |= {"strength": hires.strength, "steps": hires.steps}
    show_job(connect().images.upscale(source, **choices).job)


def _reuse(card: Card) -> None:
    job = connect().jobs.get(card.job_id)
    _fill_form(card, job)
    if job.kind == "upscale":
        notify("The image was upscaled: these settings are of the one it comes from.", "warning")
    notify("The form now has its prompt, seed and settings.", "success")
    open_tab("Generate")


def _vary(card: Card) -> None:
    values = st.session_state
    count = values.get(form.COUNT, 1)
    _fill_form(card, connect().jobs.get(card.job_id))
    form.use_as_initial(card.id, f"seed {card.seed}")
    values[form.CONTROLS] = []  # This very image says where things are, and some families take one.
    values[form.COUNT], values[form.STRENGTH] = count, _VARY_STRENGTH
    values[form.RESIZE] = "fill"  # The form has the size of this very image.
    values[form.SEED_MODE] = form.RANDOM
    submission.submit(submission.body())
    open_tab("Generate")


def _use_as_initial(card: Card) -> None:
    form.use_as_initial(card.id, f"seed {card.seed}")
    _go_on(card, "The next images start from this one.")


def _use_for_control(card: Card) -> None:
    if not form.takes_control():  # any more: the click was on an earlier drawing of the page
        return
    form.add_control(card.id, f"seed {card.seed}", thumbnail(card.id))
    _go_on(card, "The next images follow this one.")


def _go_on(card: Card, message: str) -> None:
    if not st.session_state.get(form.PROMPT):
        st.session_state[form.PROMPT] = card.prompt
    notify(message, "success")
    open_tab("Generate")


def _search_similar(card: Card) -> None:
    st.session_state[SEARCH_IMAGE] = card
    open_tab("Search")


ACTIONS = {
    "again": Action(
        "Same seed again",
        ":material/replay:",
        "Submit exactly the same settings and seed, for the same image. They also fill the form: "
        "change a word to vary it.",
        _again,
    ),
    "vary": Action(
        "Vary",
        ":material/shuffle:",
        "Start from this image with another seed, for something similar.",
        _vary,
    ),
    "initial": Action(
        "Use as initial image",
        ":material/add_photo_alternate:",
        "Start the next images from this one; change the prompt and the strength first.",
        _use_as_initial,
    ),
    "control": Action(
        "Follow with a ControlNet",
        ":material/polyline:",
        "Give the next images the edges of this one; change the prompt first.",
        _use_for_control,
    ),
    "upscale": Action(
        "Upscale",
        ":material/zoom_out_map:",
        "Make this image larger.",
        dialogs.open_upscale,
    ),
    "receipt": Action(
        "Show receipt",
        ":material/receipt_long:",
        "Show how this image was made.",
        dialogs.open_image,
    ),
    "reproduce": Action(
        "Reproduce",
        ":material/fact_check:",
        "Make the image again from its receipt, and compare every pixel.",
        dialogs.open_reproduce,
    ),
    "like": Action(
        "More like this",
        ":material/image_search:",
        "Search for images whose prompts have a similar meaning.",
        _search_similar,
    ),
    "reuse": Action(
        "Reuse prompt and seed",
        ":material/input:",
        "Fill the form with the prompt, the seed and all other settings.",
        _reuse,
    ),
    "delete": Action(
        "Delete",
        ":material/delete:",
        "Delete the image; for a minute you can undo it.",
        lambda card: delete([card]),
    ),
}
