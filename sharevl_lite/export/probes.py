"""What an export is asked before it is believed: questions, images and responses of the run itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sharevl_lite.data import load_problems
from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.source import Source
from sharevl_lite.policy.prompts import PromptRenderer
from sharevl_lite.store import RolloutStore, StoreError, read

if TYPE_CHECKING:
    from PIL.Image import Image

RESPONSE_TOKENS = 48
"""So many tokens of a response are compared."""
MAX_PIXELS = 1024 * 1024
"""Larger images are shrunk here, for time: both sides see the same."""
COLUMNS = ("problem_id", "variant_text", "image_sha", "token_ids")


@dataclass(frozen=True)
class Probe:
    """A question with its images, and the beginning of a response of the run (empty where none was stored)."""

    question: str
    images: tuple[Image, ...]
    response: tuple[int, ...]


def find_probes(source: Source, count: int) -> list[Probe]:
    """So many questions of the run, those with images first: of its newest stored rollouts, held-out ones if there are
    any, else of its data.

    Raises ExportError where neither is there.
    """
    probes = _stored(source, count) or _from_data(source, count)
    if not probes:
        raise ExportError(f"{source.run}: holds no rollouts, and its data no problem: nothing to compare the export on")
    return probes


def _stored(source: Source, count: int) -> list[Probe]:
    store = RolloutStore(source.run)
    for split in ("best", "eval", "train"):
        try:
            rows = read(source.run, split, steps=store.steps(split)[-1:], columns=COLUMNS).to_pylist()
        except StoreError:  # no such split
            continue
        first: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            first.setdefault((row["problem_id"], row["variant_text"]), row)
        chosen = sorted(first.values(), key=lambda row: not row["image_sha"])[:count]
        if chosen:
            return [
                Probe(
                    row["variant_text"],
                    tuple(store.image(sha) for sha in row["image_sha"]),
                    tuple(row["token_ids"][:RESPONSE_TOKENS]),
                )
                for row in chosen
            ]
    return []


def _from_data(source: Source, count: int) -> list[Probe]:
    data = source.recipe.data
    name, split = (data.eval, data.eval_split) if data.eval is not None else (data.train, data.train_split)
    problems = load_problems(name, data, split=split, limit=8 * count).problems
    problems = sorted(problems, key=lambda problem: not problem.images)[:count]
    return [Probe(problem.text, tuple(problem.images), ()) for problem in problems]


def encode(processor: Any, source: Source, probes: Sequence[Probe]) -> list[dict[str, Tensor]]:
    """The model's inputs for each probe, its response appended, as this processor makes them."""
    bound_pixels(processor, source)
    data = source.recipe.data
    prompts = PromptRenderer(processor, data.prompt_template, data.system_prompt)
    return [_encode(processor, prompts.render(probe.question), probe) for probe in probes]


def _encode(processor: Any, text: str, probe: Probe) -> dict[str, Tensor]:
    inputs = dict(processor(text=[text], images=list(probe.images) or None, return_tensors="pt"))
    response = torch.tensor([probe.response], dtype=inputs["input_ids"].dtype)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], response], dim=1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(response, value, dtype=inputs[name].dtype)], dim=1)
    return inputs


def bound_pixels(processor: Any, source: Source) -> None:
    """Sets the recipe's bounds on the processor, and our own above them."""
    model, size = source.recipe.model, processor.image_processor.size
    highest = min(model.max_pixels or size["longest_edge"], MAX_PIXELS)
    size["shortest_edge"] = min(model.min_pixels or size["shortest_edge"], highest)
    size["longest_edge"] = highest
