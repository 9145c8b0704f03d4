"""`python -m tests.bench.gpu`: measure the engine on a CUDA device; needs no network.

python -m tests.bench.gpu                    # all parts, in at most 5.5 minutes on an H100
python -m tests.bench.gpu --from d           # go on there; rows measured before are kept
python -m tests.bench.gpu --from b/graphs/8  # the same with one row
python -m tests.bench.gpu --tiny             # every part once, on toys and the CPU

The parts, the most telling first: (a) exactness of every family and scheduler in half precision,
(b) SD 2.1 against bare diffusers, (c) life under load, (d) SDXL, (e) FLUX and SD3, (f) inductor.
Each row is written as soon as it is measured, and the process leaves when its time is up, so a
machine lent for some minutes loses at most the row in progress.
"""

import time

_STARTED = time.monotonic()

import worker.engine  # noqa: E402, F401  (before torch: its threads must sleep, not spin)

# isort: split
import argparse  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402

from tests.bench.gpu.record import Item, Record  # noqa: E402

_BUDGET = 330.0
"""Seconds, start-up included."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what there is time for; 0 also when time was up first."""
    started = _STARTED if arguments is None else time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--from", dest="start", metavar="KEY", help="a part or a row to go on at")
    parser.add_argument("--to", dest="end", metavar="KEY", help="the last part or row to measure")
    parser.add_argument("--tiny", action="store_true", help="toys on the CPU")
    parser.add_argument("--budget", type=float, default=_BUDGET, help="seconds in all (330)")
    parser.add_argument("--out", type=Path, default=Path(".darkroom"), help="folder for results")
    options = parser.parse_args(arguments)

    import torch

    if not options.tiny and not torch.cuda.is_available():
        print("There is no CUDA device here; --tiny runs everything once on toy models.")
        return 2
    from tests.bench.gpu.plan import FULL, TINY, items

    home = Path(tempfile.mkdtemp(prefix="darkroom-bench-"))
    try:
        planned = list(items(TINY if options.tiny else FULL, home))
        first, last = _places(planned, options.start), _places(planned, options.end)
        if not first or not last:
            print(f"--from and --to take one of {', '.join(item.key for item in planned)}.")
            return 2
        kept = {item.key for item in planned[: first[0]]}
        record = Record(options.out, options.tiny, kept)
        deadline = started + options.budget
        with _leaving_at(deadline, record, home):
            _measure(planned[first[0] : last[-1] + 1], record, deadline)
        print(record.markdown())
        return 0
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _places(planned: Sequence[Item], key: str | None) -> list[int]:
    """Of the row of that name, or of all below it; all there are if it is None."""
    every = enumerate(planned)
    return [at for at, item in every if key is None or f"{item.key}/".startswith(f"{key}/")]


def _measure(planned: Sequence[Item], record: Record, deadline: float) -> None:
    """One item after the other; what does not fit into the time left is passed over."""
    late: list[str] = []
    for item in planned:
        left = deadline - time.monotonic()
        if item.seconds > left:
            late.append(item.key)
            continue
        record.begin(item.key)
        try:
            for what, numbers in item.measure():
                record.add(item.key, what, numbers)
        except Exception as error:  # the next row may fare better
            first_lines = " ".join(str(error).splitlines()[:4])  # a compiler's first says nothing
            said = f"{type(error).__name__}: {first_lines[:240]}"
            record.add(item.key, item.key, {"error": said})
    if late:
        print(f"No time was left for {', '.join(late)}: go on with --from {late[0]}.")


@contextmanager
def _leaving_at(deadline: float, record: Record, home: Path) -> Iterator[None]:
    """Nothing can be counted on to return: a kernel may be compiled for minutes."""

    def leave() -> None:
        print(f"Time is up in {record.current}: go on with --from {record.current}.", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        os._exit(0)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


if __name__ == "__main__":
    sys.exit(main())
