"""The picture of a run: how many times better than the baseline each case is, beside its target."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars on a logarithmic scale, the targets as ticks."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "shoal"
    from matplotlib import pyplot
    from run import ratio

    shown = [(result["title"], ratio(result, "shoal"), result["target"]) for result in results.values()]
    rows = [(title, times, target) for title, times, target in shown if times is not None]
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(rows) + 1.2))
    positions = range(len(rows))
    axes.barh(positions, [times for _, times, _ in rows], color="#2a7f9e", height=0.62)
    axes.plot(
        [target for *_, target in rows],
        positions,
        "|",
        color="#c4472f",
        markersize=16,
        markeredgewidth=2.5,
        label="target",
    )
    for position, (_, times, _) in zip(positions, rows, strict=True):
        axes.text(times * 1.05, position, f"{times:.1f}x", va="center", fontsize=9)
    axes.set_yticks(list(positions), [title for title, *_ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.5, max(times for _, times, _ in rows) * 2.2)
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xlabel("times better than the standard library, joblib or NumPy (logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
