"""Measure all cases in interleaved rounds and print the table: run.py [--rounds N] [--scale X] [--case NAME]…"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from cases import CASES

FOLDER = Path(__file__).resolve().parent
LIMIT = 180  # seconds for one measurement


def measure(case: str, implementation: str, scale: float) -> float | str:
    """One figure, or why there is none."""
    environment = dict(os.environ)
    if case.startswith("dot_"):
        environment["OPENBLAS_NUM_THREADS"] = case[-1]
    command = [sys.executable, str(FOLDER / "cases.py"), case, implementation, str(scale)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
    except subprocess.TimeoutExpired:
        return f"over {LIMIT} s"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return lines[-1][:70] if lines else f"exit code {done.returncode}"
    return float(json.loads(done.stdout.splitlines()[-1])["value"])


def collect(names: list[str], rounds: int, scale: float) -> dict[str, Any]:
    """Rounds go round all implementations of a case, so that the machine's drift hits each alike."""
    results: dict[str, Any] = {}
    for case in names:
        title, unit, lower, implementations, target, _ = CASES[case]
        figures: dict[str, list[float]] = {name: [] for name in implementations}
        failures: dict[str, str] = {}
        for number in range(rounds):
            order = implementations if number % 2 == 0 else tuple(reversed(implementations))
            for implementation in order:
                if implementation in failures:
                    continue
                figure = measure(case, implementation, scale)
                if isinstance(figure, str):
                    failures[implementation] = figure
                else:
                    figures[implementation].append(figure)
        results[case] = {
            "title": title,
            "unit": unit,
            "lower": lower,
            "target": target,
            "baseline": implementations[0],
            "figures": figures,
            "failures": failures,
        }
        print(row(results[case]), flush=True)
    return results


def median(figures: list[float]) -> float | None:
    return statistics.median(figures) if figures else None


def ratio(result: dict[str, Any], name: str) -> float | None:
    """How many times better than the baseline."""
    base, own = median(result["figures"][result["baseline"]]), median(result["figures"][name])
    if not base or not own:
        return None
    return base / own if result["lower"] else own / base


def spread(figures: list[float]) -> str:
    if len(figures) < 3:
        return ""
    low, _, high = statistics.quantiles(figures, n=4)
    return f" ({low:.3g}-{high:.3g})"


HEAD = f"{'case':32} {'unit':8} {'baseline':>26} {'Shoal':>24} {'times':>8} {'target':>7}   others"


def row(result: dict[str, Any]) -> str:
    figures = result["figures"]
    base = result["baseline"]

    def shown(name: str) -> str:
        value = median(figures[name])
        return f"{value:.3g}{spread(figures[name])}" if value is not None else "failed"

    times = ratio(result, "shoal")
    mark = " " if times is None else "+" if times >= result["target"] else "-"
    others = ", ".join(f"{name} {shown(name)}" for name in figures if name not in (base, "shoal"))
    failures = "; ".join(f"{name}: {why}" for name, why in result["failures"].items())
    return (
        f"{result['title']:32} {result['unit']:8} {shown(base):>26} {shown('shoal'):>24} "
        f"{'' if times is None else f'{times:.1f}x':>7}{mark} {result['target']:>6g}x   {others}"
        + (f"  [{failures}]" if failures else "")
    )


def markdown(results: dict[str, Any]) -> str:
    lines = [
        "| case | unit | baseline | Shoal | times | target | others |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for result in results.values():
        figures, base = result["figures"], result["baseline"]

        def shown(name: str, figures: dict[str, list[float]] = figures) -> str:
            value = median(figures[name])
            return "failed" if value is None else f"{value:.3g}"

        times = ratio(result, "shoal")
        others = ", ".join(f"{name} {shown(name)}" for name in figures if name not in (base, "shoal"))
        lines.append(
            f"| {result['title']} | {result['unit']} | {base} {shown(base)} | {shown('shoal')} "
            f"| {'' if times is None else f'{times:.1f}x'} | {result['target']:g}x | {others} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="how much of the work to do")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case (may be given again)")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cpus, {options.rounds} rounds; medians (quartiles)")
    print(HEAD, flush=True)
    results = collect(options.case or list(CASES), options.rounds, options.scale)
    kept = FOLDER / "results.json"
    if options.case and kept.exists():  # the others stay as they were measured
        known = {**json.loads(kept.read_text()), **results}
        results = {name: known[name] for name in CASES if name in known}
    kept.write_text(json.dumps(results, indent=1))
    (FOLDER / "results.md").write_text(markdown(results))
    import chart

    chart.draw(results, FOLDER / "results.svg")
    print("times: how many times better than the baseline; + target met, - short of it")


if __name__ == "__main__":
    main()
