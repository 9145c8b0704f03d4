"""What is measured, in order: the most telling first."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.gpu.exact import families
from tests.bench.gpu.life import Life
from tests.bench.gpu.models import Opened, Opener
from tests.bench.gpu.record import Item
from tests.bench.gpu.speed import NAMES, Load, bare, engine, ticks
from worker.engine.network import Compile


@dataclass(frozen=True)
class Plan:
    """How thoroughly, and with what."""

    device: str
    base: str
    """Of (b) and (c)."""
    compiled: str
    """Of (f)."""
    large: str
    """Of (d)."""
    transformers: tuple[str, ...]
    """Of (e)."""
    sides: tuple[int, int]
    """Pixels: of the base model, and of the large one."""
    steps: tuple[int, int]
    rows: tuple[int, ...]
    """(b)."""
    bare: tuple[int, ...]
    """Batches of diffusers' own call."""
    large_rows: tuple[int, ...]
    transformer_rows: tuple[int, ...]
    crowds: int
    """For each family."""
    one_scheduler: bool
    """Of each family, for exactness."""
    arrivals: int
    load: Load


FULL = Plan(
    device="cuda",
    base="sd21",
    compiled="sd21",
    large="sdxl",
    transformers=("flux", "sd3"),
    sides=(512, 1024),
    steps=(25, 20),
    rows=(1, 8, 16),
    bare=(1, 8),
    large_rows=(1, 4, 8),
    transformer_rows=(1, 2, 4),
    crowds=12,
    one_scheduler=False,
    arrivals=80,
    load=Load(rounds=2, repeats=2, newcomers=5),
)
TINY = Plan(
    device="cpu",
    base="toy-sd15",
    compiled="toy-schnell",
    large="toy-sdxl",
    transformers=("toy-schnell", "toy-sd3"),
    sides=(64, 96),
    steps=(3, 3),
    rows=(1, 2),
    bare=(1, 2),
    large_rows=(1,),
    transformer_rows=(1, 2),
    crowds=1,
    one_scheduler=True,
    arrivals=3,
    load=Load(rounds=1, repeats=1, newcomers=1),
)
"""Every part once, on toys: to see on any machine that the script runs."""

_MODES: tuple[Compile, ...] = ("off", "graphs")


def items(plan: Plan, home: Path) -> Iterator[Item]:
    """Everything that there is to measure; nothing is loaded before its turn."""
    opener = Opener(plan.device, home)
    yield from families(plan.device, plan.crowds, one_scheduler=plan.one_scheduler)
    base = Opened(opener, plan.base, plan.sides[0], plan.steps[0], "dpmpp-2m", 7.5)
    for batch in plan.bare:
        yield Item(f"b/bare/{batch}", 10, bare(base, batch, plan.load))
    for mode in _MODES:
        for rows in plan.rows:
            yield Item(f"b/{NAMES[mode]}/{rows}", 8, engine(base, rows, mode, plan.load))
    yield from _life(base, plan)
    large = Opened(opener, plan.large, plan.sides[1], plan.steps[1], "euler", 8.0)
    for mode, rows in _large(plan):
        yield Item(f"d/{NAMES[mode]}/{rows}", 15, engine(large, rows, mode, plan.load))
    for name in plan.transformers:
        scale = 3.5 if "flux" in name else 5.0
        for side in plan.sides:
            model = Opened(opener, name, side, 4, "flow-euler", scale)
            for rows in plan.transformer_rows:
                key = f"e/{name.removeprefix('toy-')}/{side}/{rows}"
                yield Item(key, 8, ticks(model, rows))
    scheduler = "flow-euler" if plan.compiled != plan.base else "dpmpp-2m"
    compiled = dataclasses.replace(base, name=plan.compiled, scheduler=scheduler)
    rows = plan.rows[-2]
    yield Item(f"f/inductor/{rows}", 60, engine(compiled, rows, "inductor", plan.load))


def _large(plan: Plan) -> Iterator[tuple[Compile, int]]:
    """Graphs first: that is how one would run it."""
    for rows in reversed(plan.large_rows):
        yield "graphs", rows
    yield "off", plan.large_rows[-1]


def _life(base: Opened, plan: Plan) -> Iterator[Item]:
    rows = max(rows for rows in plan.rows if rows <= 8)
    life = Life(base, rows, plan.load, plan.arrivals)
    yield Item("c/arrivals/engine", 20, life.engine)
    yield Item("c/arrivals/collect", 20, life.collect)
    yield Item("c/newcomer", 8, life.newcomer)
