"""Draws the training curves of finished runs, a colour per recipe and a thin line per seed.

python scripts/plot_runs.py docs/demo.png "Share-GRPO=runs/digits_cpu-*" "GRPO=runs/digits_grpo_cpu-*"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from sharevl_lite import metrics_log

TITLES = ("mean reward", "accuracy of sampled answers", "variant groups and problems without signal")
COLOURS = ("#0b6e99", "#d9730d", "#6b6f76")


def series(pattern: str, name: str) -> np.ndarray:
    """Values [runs, steps] of a metric."""
    runs = sorted(Path().glob(pattern))
    if not runs:
        raise SystemExit(f"no run matches {pattern}")
    lines = [[r[name] for r in metrics_log.read(run / "metrics.jsonl") if "loss" in r] for run in runs]
    return np.array([line[: min(map(len, lines))] for line in lines])


def main() -> None:
    """Reads the runs and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("groups", nargs="+", metavar="LABEL=PATTERN")
    args = parser.parse_args()
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for colour, group in zip(COLOURS, args.groups, strict=False):
        label, _, pattern = group.partition("=")
        for axes, name in zip(panels, ("reward", "accuracy"), strict=False):
            values = series(pattern, name)
            steps = np.arange(1, values.shape[1] + 1)
            axes.plot(steps, values.T, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, values.mean(0), color=colour, linewidth=2, label=f"{label} ({len(values)} seeds)")
        for level, style in (("local", "--"), ("global", "-")):
            vanished = series(pattern, f"vanished_{level}").mean(0)
            panels[2].plot(steps, vanished, color=colour, linestyle=style, label=f"{label}, {level}")
    for axes, title in zip(panels, TITLES, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for axes in panels[1:]:
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
