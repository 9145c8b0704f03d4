"""The filter `word_list`: words and phrases that a prompt must not have.

Case, width and invisible characters do not count. Words are compared whole; those of scripts that
put no spaces between them (Chinese, Japanese, Thai) are found anywhere. Entries with signs other
than hyphens and apostrophes (c++, 18+) are compared sign by sign. A list stops mistakes, not people
who want to get around it.
"""

import re
import unicodedata
from collections.abc import Iterable

from shared.core.filter_process import Prompt, Setup, Verdict

_WORD = re.compile(r"\w+")
_SIGN = re.compile(r"[^\w\s'\u2019-]")
_WEIGHT = re.compile(r":\s*[+-]?[.\d]+\s*(?=\))")
"""As in `shared.core.prompt_weights`: it would stand between two words of a phrase."""
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)


class WordList:
    """Refuses, or marks, prompts that have a word of the list; negative prompts may have any."""

    def __init__(self, setup: Setup) -> None:
        if setup.words is None:
            raise ValueError("The filter word_list needs DARKROOM_FILTER_WORDS, a file.")
        self._phrases: dict[tuple[str, ...], Verdict] = {}
        self._parts: dict[str, Verdict] = {}
        """Compared sign by sign."""
        self._add(setup.words.read_text("utf-8-sig").splitlines())
        self._lengths = sorted({len(words) for words in self._phrases})

    def check_prompt(self, prompt: Prompt) -> Verdict | None:
        """The first word of the list that refuses the prompt, else the first that marks it."""
        text = " ".join(_WEIGHT.sub("", folded(prompt.text)).split())
        words = _WORD.findall(text)
        found = [verdict for part, verdict in self._parts.items() if _has(text, part)]
        for length in self._lengths:
            for start in range(len(words) - length + 1):
                verdict = self._phrases.get(tuple(words[start : start + length]))
                if verdict is not None:
                    found.append(verdict)
        return min(found, key=lambda verdict: verdict.action != "refuse", default=None)

    def _add(self, lines: Iterable[str]) -> None:
        for line in lines:
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            marks = entry.startswith("?")
            entry = entry.removeprefix("?").strip()
            verdict = Verdict("mark" if marks else "refuse", f"The prompt has {entry[:100]!r}.")
            text = " ".join(folded(entry).split())
            words = tuple(_WORD.findall(text))
            if words and not _UNSPACED.search(text) and not _SIGN.search(text):
                self._phrases.setdefault(words, verdict)
            elif text:
                self._parts.setdefault(text, verdict)


def _has(text: str, part: str) -> bool:
    """Whether a part stands in the text, where it begins or ends a word as a whole one."""
    if part not in text:
        return False
    if _UNSPACED.search(part):
        return True
    before = r"(?<!\w)" if _WORD.match(part[0]) else ""
    after = r"(?!\w)" if _WORD.match(part[-1]) else ""
    return re.search(before + re.escape(part) + after, text) is not None


def folded(text: str) -> str:
    """The text as it is compared: in compatible forms, without case and format characters."""
    if text.isascii():
        return text.casefold()
    visible = (
        one for one in unicodedata.normalize("NFKC", text) if unicodedata.category(one) != "Cf"
    )
    return unicodedata.normalize("NFKC", "".join(visible).casefold())
