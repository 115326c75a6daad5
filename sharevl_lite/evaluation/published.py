"""Published figures of R1-ShareVL-7B, each with where it was read. A figure that was not read anywhere is left out."""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "R1-ShareVL-7B"
PROTOCOL = (
    "The authors evaluated with VLMEvalKit and a thinking prompt after the question (README of HJYao00/R1-ShareVL); "
    "lmms-eval extracts and judges answers by other rules, so a difference of some points may be the harness's."
)
_DIVA = "DIVA-GRPO (arXiv 2603.01106), table 1"
_EITHER = f"{_DIVA}; measured there or taken over, which is not said"
_UNREAD = "not verified: the authors' table (arXiv 2505.16673) was not at hand"


@dataclass(frozen=True)
class Published:
    """A figure in percent (None: none that was verified) and its source."""

    percent: float | None
    source: str


R1_SHAREVL_7B: dict[str, Published] = {
    "mathvista": Published(75.4, f"the authors' figure as quoted by {_DIVA}, which measured 73.5 itself"),
    "mathverse": Published(52.8, _EITHER),
    "mathvision": Published(29.5, _EITHER),
    "mmstar": Published(None, _UNREAD),
    "mmmu": Published(None, _UNREAD),
    "ai2d": Published(None, _UNREAD),
}
BENCHMARKS = tuple(R1_SHAREVL_7B)
