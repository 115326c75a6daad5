"""Prints a Markdown table of finished runs, one line each.

python scripts/tabulate_runs.py "runs/digits_cpu-*" "runs/digits_grpo_cpu-*"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = (
    ("all", "accuracy"),
    ("plain", "accuracy_plain"),
    ("variants", "accuracy_variants"),
)
SHARES = (("vanished local", "vanished_local"), ("global", "vanished_global"), ("rescued", "rescued"))


def main() -> None:
    """Reads summary.json of every run that a pattern matches."""
    runs = [run for pattern in sys.argv[1:] for run in sorted(Path().glob(pattern)) if (run / "summary.json").is_file()]
    if not runs:
        raise SystemExit(__doc__)
    titles = [*(f"{title}, before → after" for title, _ in COLUMNS), *(title for title, _ in SHARES), "train s"]
    print("| run | " + " | ".join(titles) + " |")
    print("|---" * (len(titles) + 1) + "|")
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        cells = []
        for _, name in COLUMNS:
            before, after = 100 * summary[f"{name}_before"], 100 * summary[f"{name}_after"]
            cells.append(f"{before:.1f} → {after:.1f} (**{after - before:+.1f}**)")
        cells += [f"{100 * summary[name]:.0f}%" for _, name in SHARES]
        print(f"| {run.name} | " + " | ".join([*cells, f"{summary['train_seconds']:.0f}"]) + " |")


if __name__ == "__main__":
    main()
