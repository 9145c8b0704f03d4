"""Filters in their process: what they say, and what becomes of those that hang, crash or babble."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from prometheus_client import REGISTRY
from structlog.testing import CapturingLogger

from api.core.fairness import FairSemaphores, acting_key
from api.jobs import prompt_filters
from api.jobs.prompt_filters import PromptFilters
from shared.core.errors import FilterUnavailable
from shared.core.filter_process import MadeImage, Prompt, Setup, Side
from shared.core.filters import NOT_CHECKED, NOTHING, Filters, Finding, Findings
from shared.core.model_catalog import ModelSpec
from shared.core.settings import Settings, SettingsError
from shared.core.word_list import WordList
from tests.filters import build_checker, install
from tests.processes import PROJECT, wait_until

Open = Callable[..., Filters]


@pytest.fixture
def open_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Filters with some settings, which are closed after the test."""
    monkeypatch.syspath_prepend(str(install(tmp_path / "package")))
    opened = []

    def make(side: Side, *names: str, models: tuple[ModelSpec, ...] = (), **others: Any) -> Filters:
        chosen = Settings(
            environment="local",
            database_url="postgresql://someone@127.0.0.1/none",
            redis_url="redis://127.0.0.1/0",
            filters=names,
            **{"filter_deadline": timedelta(minutes=1), **others},
        )
        filters = Filters(chosen, side, models)
        opened.append(filters)
        return filters

    yield make
    for filters in opened:
        filters.close()


def prompt(text: str) -> Prompt:
    return Prompt(text, None, "sim", "tenant")


def image(text: str, side: int = 8) -> MadeImage:
    return MadeImage(np.zeros((side, side, 3), np.uint8), prompt(text))


@contextmanager
def hurried(filters: Filters) -> Iterator[None]:
    """A deadline that soon passes, for what hangs. Answers may take as long as a loaded machine
    needs for them."""
    usual, filters._seconds = filters._seconds, 0.2
    yield
    filters._seconds = usual


def processes_of_filters() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [one for one in children if "filter_process" in " ".join(one.cmdline())]


def test_nothing_runs_and_nothing_is_asked_without_filters(open_filters: Open) -> None:
    filters = open_filters("prompt")
    assert not filters.may_look
    filters.start()
    assert filters.check(prompt("refuse prompt")) == NOTHING
    # The word list looks at no image, so a worker starts nothing for it.
    words = open_filters("image", "word_list")
    assert not words.may_look
    assert words.check(image("refuse image")) == NOTHING
    assert processes_of_filters() == []


def test_verdicts_of_a_packages_filter(open_filters: Open) -> None:
    filters = open_filters("prompt", "obedient")
    assert filters.check(prompt("a house")) == NOTHING
    refused = filters.check(prompt("refuse prompt"))
    assert refused.refusal == Finding("obedient", "The prompt asks for it.")
    marked = filters.check(prompt("mark prompt"))
    assert marked == (None, (Finding("obedient", "The prompt asks for it."),))
    images = open_filters("image", "obedient")
    assert images.check(image("refuse images 1")) == NOTHING
    assert images.check(image("refuse images 1")).refusal == Finding("obedient", "Image 1 it is.")


@pytest.mark.parametrize("fault", ["hang", "crash", "raise", "babble"])
def test_a_filter_that_fails_refuses_to_answer_and_the_next_question_is_answered(
    open_filters: Open, fault: str
) -> None:
    filters = open_filters("prompt", "obedient")
    filters.start()
    [before] = processes_of_filters()
    with hurried(filters) if fault == "hang" else nullcontext():
        _fails(filters, prompt(f"{fault} prompt"))
    assert filters.check(prompt("refuse prompt")).refusal is not None
    [after] = processes_of_filters()
    assert (before.pid == after.pid) == (fault in ("raise", "babble"))


def test_open_filters_let_pass_what_they_cannot_check_and_mark_it(
    open_filters: Open, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("forbidden\n")
    filters = open_filters(
        "prompt", "obedient", "word_list", filter_failures="open", filter_words=words
    )
    found = filters.check(prompt("crash prompt"))
    assert found == (None, (Finding("obedient", NOT_CHECKED),))
    # The others are asked all the same.
    found = filters.check(prompt("crash prompt, forbidden"))
    assert found.refusal == Finding("word_list", "The prompt has 'forbidden'.")
    broken = open_filters("prompt", "broken", filter_failures="open")
    broken.start()
    assert broken.check(prompt("a house")).marks == (Finding("broken", NOT_CHECKED),)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    """What the filters log: the output that a logger was first used with may be another test's."""
    logger = CapturingLogger()
    monkeypatch.setattr("shared.core.filters._log", logger)
    return logger


def test_filters_that_cannot_be_loaded(open_filters: Open, log: CapturingLogger) -> None:
    with pytest.raises(SettingsError, match=r"'no-such'.*obedient.*word_list"):
        open_filters("prompt", "no-such")
    for names in (("broken",), ("word_list",)):  # the second has no file of words
        filters = open_filters("prompt", *names)
        # Tenants are told no more than this.
        with pytest.raises(FilterUnavailable, match=r"^The filters cannot be loaded\.$"):
            filters.start()
        with pytest.raises(FilterUnavailable):
            filters.check(prompt("a house"))
    assert processes_of_filters() == []
    assert "no such luck" in str(log.calls)
    assert "DARKROOM_FILTER_WORDS" in str(log.calls)


def test_a_hang_is_timed_out_and_what_a_filter_says_of_a_prompt_is_not_logged(
    open_filters: Open, log: CapturingLogger, capfd: pytest.CaptureFixture[str]
) -> None:
    def timed_out() -> float:
        labels = {"filter": "obedient", "side": "prompt", "outcome": "timed_out"}
        return REGISTRY.get_sample_value("darkroom_filter_seconds_count", labels) or 0

    before = timed_out()
    filters = open_filters("prompt", "obedient")
    with hurried(filters):
        _fails(filters, prompt("hang prompt"))
    _fails(filters, prompt("raise prompt in a secret garden"))
    assert timed_out() == before + 1
    said = capfd.readouterr()
    assert "filter_timed_out" in str(log.calls)
    assert "RuntimeError" in str(log.calls)
    assert "secret garden" not in str(log.calls) + said.out + said.err


def test_processes_that_a_filter_has_started_end_with_it(
    open_filters: Open, tmp_path: Path
) -> None:
    filters = open_filters("prompt", "obedient")
    for fault in ("hang", "crash"):
        helper = tmp_path / fault
        assert filters.check(prompt(f"with helper {helper}")) == NOTHING
        number = int(helper.read_text())
        assert _runs(number)
        with hurried(filters) if fault == "hang" else nullcontext():
            _fails(filters, prompt(f"{fault} prompt"))
        wait_until(lambda number=number: not _runs(number), 20, "the end of the helper")


def _runs(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_process_that_ended_unasked_is_started_anew(open_filters: Open) -> None:
    filters = open_filters("image", "obedient")
    filters.start()
    [process] = processes_of_filters()
    process.kill()
    # The end of its last thread, which closes the connection; its state is "zombie" before that.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert filters.check(image("refuse image")).refusal is not None


@pytest.fixture
def may_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the filter `slow` waits for while it is loaded."""
    monkeypatch.setenv("TOY_MAY_LOAD", str(tmp_path / "may-load"))
    return tmp_path / "may-load"


def test_whoever_gives_up_waits_neither_for_others_nor_for_the_start(
    open_filters: Open, may_load: Path
) -> None:
    filters = open_filters("image", "obedient")
    filters.start()
    hanging = threading.Thread(target=_fails, args=(filters, image("hang image")))
    hanging.start()
    wait_until(filters._lock.locked, 20, "the question that hangs")
    with pytest.raises(FilterUnavailable, match="busy"):
        filters.check(image("a house"), lambda: True)
    filters.close()
    hanging.join()
    slow = open_filters("image", "slow")
    with pytest.raises(FilterUnavailable, match="being loaded"):
        slow.start(lambda: True)
    [process] = processes_of_filters()
    may_load.touch()
    assert slow.check(image("a house")) == NOTHING  # it went on loading meanwhile
    assert process in processes_of_filters()


@pytest.mark.long
def test_whoever_gives_up_does_not_wait_for_a_start_after_a_kill_either(
    open_filters: Open, may_load: Path
) -> None:
    filters = open_filters("image", "obedient", "slow", filter_failures="open")
    may_load.touch()
    filters.start()
    may_load.unlink()
    [killed] = processes_of_filters()
    with hurried(filters):
        found = filters.check(image("hang image"), lambda: True)
    assert found.marks == (Finding("obedient", NOT_CHECKED), Finding("slow", NOT_CHECKED))
    [process] = processes_of_filters()
    assert process != killed
    may_load.touch()
    assert filters.check(image("a house")) == NOTHING  # it went on loading meanwhile
    assert processes_of_filters() == [process]


def _fails(filters: Filters, subject: Prompt | MadeImage) -> None:
    with pytest.raises(FilterUnavailable):
        filters.check(subject)


def ask(filters: PromptFilters, texts: list[list[str]]) -> list[Any]:
    """What several keys are told that ask at the same time."""

    async def of_key(resources: Any, number: int) -> Any:
        acting_key.set(str(number))
        return await filters.check(resources, [prompt(text) for text in texts[number]])

    async def of_all() -> list[Any]:
        resources: Any = SimpleNamespace(semaphores=FairSemaphores(8, 4))
        askers = (of_key(resources, number) for number in range(len(texts)))
        return await asyncio.gather(*askers, return_exceptions=True)

    return asyncio.run(of_all())


@pytest.mark.long
@pytest.mark.parametrize("failures", ["open", "closed"])
def test_only_the_wait_in_line_has_a_limit_of_its_own(
    failures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "package")))
    monkeypatch.setattr(prompt_filters, "_SECONDS", 3.0)
    chosen = Settings(
        environment="local",
        database_url="postgresql://someone@127.0.0.1/none",
        redis_url="redis://127.0.0.1/0",
        filters=("obedient",),
        filter_failures=failures,
        filter_deadline=timedelta(minutes=1),
    )
    filters = PromptFilters(chosen)
    try:
        wait_until(lambda: filters._filters._is_loaded, 60, "the filters")
        # A filter may take longer for a prompt, and for several together, than one may wait.
        [found] = ask(filters, [["take 2 seconds"] * 3])
        assert found == [NOTHING] * 3
        filters._filters._seconds = 6.0  # longer than one may wait in line
        hung, waited = ask(filters, [["hang prompt"], ["a house"]])
    finally:
        filters.close()
    if failures == "open":
        not_checked = [Findings(marks=(Finding("obedient", NOT_CHECKED),))]
        assert (hung, waited) == (not_checked, not_checked)
    else:
        assert [one.kind.code for one in (hung, waited)] == ["filter_unavailable"] * 2


@pytest.mark.long
def test_a_stopped_process_that_takes_no_image_is_killed(open_filters: Open) -> None:
    filters = open_filters("image", "obedient", filter_deadline=timedelta(seconds=2))
    filters.start()
    [process] = processes_of_filters()
    process.send_signal(signal.SIGSTOP)
    _fails(filters, image("a house", side=2048))  # more than a socket holds
    assert not process.is_running()
    filters._seconds = 60.0
    assert filters.check(image("refuse image")).refusal is not None


@pytest.mark.long
def test_the_process_ends_with_whoever_started_it_even_while_it_hangs(tmp_path: Path) -> None:
    package = install(tmp_path / "package")
    script = (
        "from shared.core.filters import Filters; from shared.core.filter_process import Prompt\n"
        "from shared.core.settings import get_settings\n"
        "filters = Filters(get_settings(), 'prompt')\n"
        "filters.start(); print('ready', flush=True)\n"
        "filters.check(Prompt('hang prompt', None, 'sim', 't'))\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{PROJECT}:{package}",
        "DARKROOM_ENVIRONMENT": "local",
        "DARKROOM_DATABASE_URL": "postgresql://someone@127.0.0.1/none",
        "DARKROOM_REDIS_URL": "redis://127.0.0.1/0",
        "DARKROOM_FILTERS": "obedient",
        "DARKROOM_FILTER_DEADLINE": "PT1M",
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        assert "ready\n" in iter(parent.stdout.readline, "")
        [child] = psutil.Process(parent.pid).children()
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not _runs(child.pid), 20, "the end of the filters' process")


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("a Forbidden\n  FRUIT, oil painting", "refuse"),
        ("ｆｏｒｂｉｄｄｅｎ fruit", "refuse"),
        ("forb\u200bidden fruit", "refuse"),
        ("(forbidden fruit:1.3)", "refuse"),
        ("forbidden fruits", None),
        ("unforbidden fruit", None),
        ("Straße", "refuse"),
        ("这是禁止的图片", "refuse"),
        ("a wise owl", "mark"),
        ("a wise owl with forbidden fruit", "refuse"),
        ("🔞!", "refuse"),
        ("a comment", None),
        ("(forbidden:1.2) [fruit]", "refuse"),
        ("((forbidden) fruit:0.5)", "refuse"),
        ("vitamin c", None),
        ("a C++ book", "refuse"),
        ("(c++:1.2)", "refuse"),
        ("an 18 year old oak", None),
        ("18+", "refuse"),
        ("118+", None),
        ("ice-cold water", "refuse"),
        ("ice cold", "refuse"),
    ],
)
def test_the_word_list(tmp_path: Path, text: str, action: str | None) -> None:
    words = tmp_path / "words.txt"
    words.write_text(
        "# comment\n\nforbidden fruit\n? owl\nSTRASSE\n禁止\n🔞\nc++\n18+\nice-cold\n", "utf-8"
    )
    verdict = WordList(Setup(words)).check_prompt(prompt(text))
    assert (verdict and verdict.action) == action


@pytest.mark.long
def test_the_safety_checker_of_a_checkpoint(open_filters: Open, tmp_path: Path) -> None:
    strict = build_checker(tmp_path / "strict", threshold=-1.0)
    lax = build_checker(tmp_path / "lax", threshold=1.0)
    (tmp_path / "bare").mkdir()
    bare = ModelSpec(name="bare", source=str(tmp_path / "bare"))
    simulated = ModelSpec(name="simulated", source="simulated:tick=0.01")
    filters = open_filters(
        "image",
        "safety_checker",
        models=(strict, lax, bare, simulated),
        filter_deadline=timedelta(minutes=1),
        device="cpu",
    )
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
    refused = {
        name: filters.check(MadeImage(pixels, Prompt("a house", None, name, "t"))).refusal
        for name in ("strict", "lax", "bare", "simulated")
    }
    assert [name for name, refusal in refused.items() if refusal] == ["strict"]
    assert refused["strict"] is not None
    assert refused["strict"].filter == "safety_checker"
