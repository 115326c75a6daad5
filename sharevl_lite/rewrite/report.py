"""The report of a run in Markdown: counts, cost, and questions beside their rewrites with the changed words in bold."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from sharevl_lite.data.images import encoded_images
from sharevl_lite.data.problem import Problem

EXAMPLES = 20
PER_REASON = 3


class Report:
    """Keeps the first examples of each kind, and their images in `folder`/images."""

    def __init__(self, folder: Path) -> None:
        self._images = folder / "images"
        self._images.mkdir()
        self._shown: list[str] = []
        self._rejected: dict[str, list[tuple[str, str]]] = {}

    def add(self, problem: Problem, accepted: list[str], rejected: list[tuple[str, str]]) -> None:
        """Note one problem, if it is among the first."""
        for text, reason in rejected:
            kept = self._rejected.setdefault(reason, [])
            if len(kept) < PER_REASON:
                kept.append((problem.text, text))
        if accepted and len(self._shown) < EXAMPLES:
            self._shown.append(self._example(problem, accepted))

    def _example(self, problem: Problem, accepted: list[str]) -> str:
        number = len(self._shown)
        pictures = []
        for place, (data, image) in enumerate(zip(encoded_images(problem.images), problem.images, strict=True)):
            name = f"{number:02d}-{place}.png"
            if data.startswith(b"\x89PNG"):
                (self._images / name).write_bytes(data)
            else:
                image.save(self._images / name)
            pictures.append(f"![image](images/{name})")
        rows = [f"| {_cell(problem.text)} | {_cell(changed(problem.text, text))} |" for text in accepted]
        table = ["| question | rewrite |", "|---|---|", *rows]
        return "\n".join([f"### {problem.id}", "", " ".join(pictures), "", *table, ""])

    def text(self, manifest: dict[str, Any]) -> str:
        """The whole report."""
        counts, settings = manifest["counts"], manifest["settings"]
        lines = [
            f"# Rewrites of {settings['data']} by {settings['rewriter']}",
            "",
            f"{counts['problems']} problems, {counts['accepted']} rewrites accepted, {counts['rejected']} rejected. "
            f"{counts['short']} problems have fewer than {settings['num']} rewrites, {counts['without']} of them none.",
            "",
            *_failed(manifest["failed"]),
            "| rejected by | rewrites |",
            "|---|---:|",
            *[f"| {name} | {count} |" for name, count in manifest["rejected_by"].items()],
            "",
            *_check(manifest["check"]),
            "| cost | |",
            "|---|---:|",
            *[f"| {name.replace('_', ' ')} | {value} |" for name, value in manifest["cost"].items()],
            "",
            "## Accepted",
            "",
            *self._shown,
            "## Rejected",
            "",
        ]
        for reason, pairs in sorted(self._rejected.items()):
            rows = [f"| {_cell(old)} | {_cell(changed(old, new))} |" for old, new in pairs]
            lines += [f"### {reason}", "", "| question | rewrite |", "|---|---|", *rows, ""]
        return "\n".join(lines)


def _failed(failed: list[dict[str, str]]) -> list[str]:
    if not failed:
        return []
    some = ", ".join(entry["id"] for entry in failed[:EXAMPLES]) + (", …" if len(failed) > EXAMPLES else "")
    return [
        f"**Not complete:** requests for {len(failed)} problems failed for good ({some}). The same command asks again "
        "for these alone.",
        "",
    ]


def _check(counts: dict[str, int] | None) -> list[str]:
    if counts is None:
        return []
    rows = [f"| {name.replace('_', ' ')} | {count} |" for name, count in counts.items()]
    return ["| solver check | |", "|---|---:|", *rows, ""]


def changed(before: str, after: str) -> str:
    """`after` with the words that `before` does not have in bold."""
    old, new = before.split(), after.split()
    pieces = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        words = " ".join(new[start:end])
        if words:
            pieces.append(words if kind == "equal" else f"**{words}**")
    return " ".join(pieces)


def _cell(text: str) -> str:
    return text.replace("<image>", "").replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>").strip()
