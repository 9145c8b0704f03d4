"""The measurements as Markdown, for docs/performance.md."""

from typing import Any

_MODES = {"off": "eager", "graphs": "CUDA graphs", "inductor": "compiled"}


def markdown(report: dict[str, Any]) -> str:
    """All tables, under a line that names device and versions."""
    about = report["about"]
    lines = [
        f"{about['device']}, torch {about['torch']}, diffusers {about['diffusers']}, "
        f"CUDA {about['cuda']}, {about['dtype']}",
        "",
    ]
    for model in report["models"]:
        lines += _model(model)
    return "\n".join(lines) + "\n"


def _model(model: dict[str, Any]) -> list[str]:
    lines = [f"### {model['model']}, {model['side']}², {model['steps']} steps", ""]
    lines += ["| bare diffusers loop | images/s |", "| --- | --- |"]
    lines += [f"| batch {row['batch']} | {_spread(row)} |" for row in model["bare"]]
    lines += ["", "| engine | rows | tick (ms) | images/s |", "| --- | --- | --- | --- |"]
    lines += [_engine(row) for row in model["engine"]]
    exact = model["exactness"]
    broken = [name for name, share in exact["share"].items() if share < 1]
    verdict = f"differs: {', '.join(broken)}" if broken else "every scheduler bit-exact"
    lines += ["", f"Same seed in crowds at {exact['rows']} rows: {verdict}.", ""]
    for row in model["between_shapes"]:
        value = "identical" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
        lines.append(f"{row['rows'][0]} row against {row['rows'][1]} rows: {value}.")
    online, waits = model["arrivals"], model["newcomer"]
    lines += [
        "",
        f"Poisson arrivals at {online['offered_per_second']:.2f}/s: "
        f"{online['done_per_second']:.2f}/s done, latency p50 {online['latency_p50']:.2f} s, "
        f"p99 {online['latency_p99']:.2f} s.",
        f"Interactive into a full engine: first tick after {waits['median'] * 1000:.0f} ms "
        f"({waits['min'] * 1000:.0f} … {waits['max'] * 1000:.0f}).",
        "",
    ]
    return lines


def _engine(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {_MODES[row['mode']]} | {row['rows']} | | {row['error']} |"
    tick = f"{row['tick_seconds'] * 1000:.1f}"
    return f"| {_MODES[row['mode']]} | {row['rows']} | {tick} | {_spread(row)} |"


def _spread(row: dict[str, Any]) -> str:
    return f"{row['median']:.2f} ({row['min']:.2f} … {row['max']:.2f})"
