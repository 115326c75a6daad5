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

PANELS = (("accuracy", "accuracy of sampled answers"), ("vanished", "variant groups and problems without signal"))
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
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for colour, group in zip(COLOURS, args.groups, strict=False):
        label, _, pattern = group.partition("=")
        accuracy = series(pattern, "accuracy")
        steps = np.arange(1, accuracy.shape[1] + 1)
        left.plot(steps, accuracy.T, color=colour, alpha=0.25, linewidth=0.8)
        left.plot(steps, accuracy.mean(0), color=colour, linewidth=2, label=f"{label} ({len(accuracy)} seeds)")
        for level, style in (("local", "--"), ("global", "-")):
            vanished = series(pattern, f"vanished_{level}").mean(0)
            right.plot(steps, vanished, color=colour, linestyle=style, label=f"{label}, {level}")
    for axes, (_, title) in zip((left, right), PANELS, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
