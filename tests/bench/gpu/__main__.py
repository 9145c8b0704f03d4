"""`python -m tests.bench.gpu`: measure the engine on a CUDA device; needs no network.

python -m tests.bench.gpu                      # true-width SD 2.1 base and SDXL, on CUDA
python -m tests.bench.gpu --model sd21         # one of them
python -m tests.bench.gpu --tiny               # a toy on the CPU: does the script run?
"""

import worker.engine  # noqa: F401  (before torch: its threads must sleep, not spin)

# isort: split
import argparse
import gc
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.bench.gpu import measures
from tests.bench.gpu.models import write_model
from tests.bench.gpu.plan import FULL, TINY, Plan
from tests.bench.gpu.report import markdown


def main() -> int:
    """Measure, then write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu")
    parser.add_argument("--model", choices=[plan.model for plan in FULL], help="default: all")
    parser.add_argument("--tiny", action="store_true", help="a toy model on the CPU")
    parser.add_argument("--out", type=Path, default=Path(".darkroom"), help="folder for results")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("There is no CUDA device here; --tiny runs everything once on a toy model.")
        return 2
    device = "cpu" if options.tiny else "cuda"
    plans = list(TINY if options.tiny else FULL)
    if options.model:
        plans = [plan for plan in plans if plan.model == options.model]
    report: dict[str, Any] = {"about": _about(device), "models": []}
    options.out.mkdir(parents=True, exist_ok=True)
    for plan in plans:
        report["models"].append(_measure(plan, device))
        _write(report, options.out)
    print(markdown(report))
    return 0


def _measure(plan: Plan, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as home:
        folder = Path(home) / plan.model
        write_model(plan.model, folder, device)
        _free()
        result: dict[str, Any] = {"model": plan.model, "side": plan.side, "steps": plan.steps}
        batches = sorted({1, min(8, plan.rows[-1])})
        result["bare"] = []
        for batch in batches:
            result["bare"].append(measures.bare_loop(plan, folder, device, batch))
            _free()
        result["engine"] = [
            _engine(plan, folder, device, rows, mode) for mode in plan.modes for rows in plan.rows
        ]
        result |= _behaviour(plan, folder, device, result["engine"])
    return result


def _engine(plan: Plan, folder: Path, device: str, rows: int, mode: Any) -> dict[str, Any]:
    """One line of the throughput table; what does not fit or compile says so and goes on."""
    print(f"{plan.model}: {mode}, {rows} rows", file=sys.stderr)
    numbers: dict[str, Any] = {"mode": mode, "rows": rows}
    try:
        engine, warm = measures.open_engine(plan, folder, device, rows, mode)
        try:
            numbers |= measures.throughput(plan, engine, rows)
            numbers["tick_seconds"] = warm.tick_times[-1].seconds
            numbers["warm_up_seconds"] = warm.seconds
        finally:
            engine.close()
    except Exception as error:
        numbers["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    _free()
    return numbers


def _behaviour(
    plan: Plan, folder: Path, device: str, table: list[dict[str, Any]]
) -> dict[str, Any]:
    """Exactness, differences between shapes, and life under load, eagerly at up to 8 rows."""
    rows = max(count for count in plan.rows if count <= 8)
    rate = next((line["median"] for line in table if line["rows"] == rows and "median" in line), 1)
    engine, _ = measures.open_engine(plan, folder, device, rows, "off")
    try:
        shapes = []
        asked = measures.ask(plan, 1)
        reference = engine.submit(asked).future.result()
        for other in plan.rows:
            if other < rows:
                changed = engine.submit(replace(asked, rows=other)).future.result()
                shapes.append(
                    {"rows": [other, rows], "psnr": measures.decibels(changed, reference)}
                )
        return {
            "exactness": {"rows": rows, "share": measures.exactness(plan, engine)},
            "between_shapes": shapes,
            "arrivals": measures.arrivals(plan, engine, 0.9 * rate),
            "newcomer": measures.newcomer(plan, engine, rows),
        }
    finally:
        engine.close()
        _free()


def _about(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "cuda": torch.version.cuda,
        "dtype": "float32" if device == "cpu" else "float16",
    }


def _write(report: dict[str, Any], out: Path) -> None:
    (out / "bench-gpu.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (out / "bench-gpu.md").write_text(markdown(report), "utf-8")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
