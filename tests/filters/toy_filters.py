"""A package's filter for the tests: prompts say what it does to them and to their images."""

import os
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any


class Obedient:
    """Its prompts say what it does: "refuse prompt", "hang image", "refuse images 0,2"."""

    def __init__(self, setup: object) -> None:
        self._seen: Counter[str] = Counter()
        denied = os.environ.get("TOY_DENIED")
        if denied and Path(denied).with_name("gone").exists():
            raise RuntimeError("its files are gone")

    def check_prompt(self, prompt: Any) -> tuple[str, str] | None:
        """As the prompt says of prompts."""
        denied = os.environ.get("TOY_DENIED")
        if denied and Path(denied).exists() and Path(denied).read_text() in prompt.text:
            return "refuse", "It is denied now."
        return self._obey(prompt.text, "prompt")

    def check_image(self, image: Any) -> tuple[str, str] | None:
        """As the prompt says of images."""
        assert image.pixels.ndim == 3
        text = image.prompt.text
        number = self._seen[text]
        self._seen[text] += 1
        chosen = re.search(r"refuse images ([\d,]+)", text)
        if chosen is not None:
            refused = str(number) in chosen[1].split(",")
            return ("refuse", f"Image {number} it is.") if refused else None
        return self._obey(text, "image")

    def _obey(self, text: str, side: str) -> tuple[str, str] | None:
        once = re.search(rf"hang {side} once (\S+)", text)
        if once is not None:
            if Path(once[1]).exists():
                return None
            Path(once[1]).touch()
            text = f"hang {side}"
        _prepare(text)
        if f"hang {side}" in text:
            while True:
                time.sleep(60)
        if f"crash {side}" in text:
            os._exit(3)
        if f"raise {side}" in text:
            raise RuntimeError(f"as it was told by {text}")
        if f"babble {side}" in text:
            return "perhaps", "Who knows."
        for action in ("refuse", "mark"):
            if f"{action} {side}" in text:
                return action, f"The {side} asks for it."
        return None


def _prepare(text: str) -> None:
    if helper := re.search(r"with helper (\S+)", text):
        Path(helper[1]).write_text(str(subprocess.Popen(["sleep", "300"]).pid))
    if slow := re.search(r"take (\d+) seconds", text):
        time.sleep(int(slow[1]))


class Slow:
    """Takes to load until a file is there that the test makes."""

    def __init__(self, setup: object) -> None:
        while not Path(os.environ["TOY_MAY_LOAD"]).exists():
            time.sleep(0.05)

    def check_image(self, image: object) -> None:
        """Allows everything."""


class Broken:
    """Cannot be made."""

    def __init__(self, setup: object) -> None:
        raise RuntimeError("no such luck")

    def check_prompt(self, prompt: object) -> None:
        """Never called."""

    def check_image(self, image: object) -> None:
        """Never called."""
