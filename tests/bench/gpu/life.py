"""(c): images that come when they like, beside a server that collects a batch and then runs it."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

from tests.bench.gpu.models import Opened, free
from tests.bench.gpu.record import Numbers
from tests.bench.gpu.speed import Load, bare_call, open_loop, throughput
from tests.bench.row import percentile
from worker.engine.loop import StepLoop

_OFFERED = 0.8
"""Of what the engine makes when its rows are always full."""

Submit = Callable[[int, Callable[[], None]], None]
"""Takes a seed, and whom to call when the image is there."""


class Life:
    """Two servers at the same offered load, with at most the same number of images at once."""

    def __init__(self, model: Opened, rows: int, load: Load, arrivals: int) -> None:
        self._model, self._rows, self._load, self._arrivals = model, rows, load, arrivals
        self._capacity: float | None = None

    def engine(self) -> Iterator[tuple[str, Numbers]]:
        """Poisson arrivals at the engine."""
        with self._warm() as loop:
            rate = self._rate(loop)

            def submit(seed: int, done: Callable[[], None]) -> None:
                ticket = loop.submit(self._model.request(seed))
                ticket.future.add_done_callback(lambda _: done())

            yield f"engine, {self._rows} rows", self._arrive(rate, submit)

    def collect(self) -> Iterator[tuple[str, Numbers]]:
        """The same arrivals at diffusers' own call: whoever waits when it is free goes."""
        with self._warm() as loop:
            rate = self._rate(loop)
        call = bare_call(self._model)
        for batch in (1, self._rows):
            call(range(batch))
        with _collector(call, self._rows) as submit:
            yield "collect a batch, then run it", self._arrive(rate, submit)

    def newcomer(self) -> Iterator[tuple[str, Numbers]]:
        """An interactive image into an engine full of bulk: until its first tick."""
        waits = []
        with self._warm() as loop:
            for repeat in range(self._load.newcomers):
                seeds = range(2 * self._rows)
                bulk = [loop.submit(self._model.request(seed, "bulk")) for seed in seeds]
                ticks = loop.counters.ticks
                while loop.counters.ticks < ticks + 2:
                    time.sleep(0.001)
                submitted = time.monotonic()
                image = loop.submit(self._model.request(1000 + repeat)).future.result()
                waits.append(1000 * (image.started_at - submitted))
                for ticket in bulk:
                    ticket.cancel()
        numbers = {"first tick after, p50 (ms)": percentile(waits, 0.5), "worst (ms)": max(waits)}
        yield "interactive image into a full engine", numbers

    @contextmanager
    def _warm(self) -> Iterator[StepLoop[Any]]:
        loop = open_loop(self._model.backend(self._rows, "graphs"))
        try:
            loop.warm_up()
            yield loop
        finally:
            loop.close()
            free()

    def _rate(self, loop: StepLoop[Any]) -> float:
        if self._capacity is None:
            saturated = throughput(self._model, loop, self._rows, self._load)
            self._capacity = float(saturated["images/s"])
        return _OFFERED * self._capacity

    def _arrive(self, rate: float, submit: Submit) -> Numbers:
        """Latencies from arrival to pixels."""
        random, began = Random(0), time.monotonic()
        due, spent = began, list[float]()
        over = threading.Semaphore(0)
        for seed in range(self._arrivals):
            due += random.expovariate(rate)
            time.sleep(max(0.0, due - time.monotonic()))

            def done(at: float = due) -> None:
                spent.append(time.monotonic() - at)
                over.release()

            submit(seed, done)
        for _ in range(self._arrivals):
            over.acquire()
        return {
            "offered (images/s)": rate,
            "done (images/s)": self._arrivals / (time.monotonic() - began),
            "p50 (s)": percentile(spent, 0.5),
            "p99 (s)": percentile(spent, 0.99),
        }


@contextmanager
def _collector(call: Callable[[Sequence[int]], None], most: int) -> Iterator[Submit]:
    """A thread that takes what waits, up to so many, and runs it as one batch."""
    waiting: queue.Queue[tuple[int, Callable[[], None]] | None] = queue.Queue()

    def serve() -> None:
        while (first := waiting.get()) is not None:
            batch = [first]
            while len(batch) < most and not waiting.empty():
                other = waiting.get()
                if other is None:
                    return
                batch.append(other)
            call([seed for seed, _ in batch])
            for _, done in batch:
                done()

    thread = threading.Thread(target=serve, name="collector", daemon=True)
    thread.start()
    yield lambda seed, done: waiting.put((seed, done))
    waiting.put(None)
    thread.join()
