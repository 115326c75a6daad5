"""What decides the figures of an evaluation, as scalars: the `protocol` of its document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from sharevl_lite.config import Recipe
from sharevl_lite.data.images import LazyImages
from sharevl_lite.data.problem import Problem, fingerprint
from sharevl_lite.evaluation.document import Scalar
from sharevl_lite.evaluation.statistics import LEVEL
from sharevl_lite.policy.hf import adapter_digest
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.rewards.functions import digest_of_file
from sharevl_lite.store import pixel_sha
from sharevl_lite.versions import installed_version

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGES = ("torch", "transformers", "peft", "math-verify")


def protocol_of(
    recipe: Recipe,
    policy: PackedPolicy,
    problems: Sequence[Problem],
    *,
    target: str,
    adapter: Path | None,
    ways: str,
    source_column: str | None,
    resamples: int,
    bad_rows_skipped: int = 0,
) -> dict[str, Scalar]:
    """The protocol of an evaluation of `target`, with `adapter` the folder of its adapter."""
    section, data, tolerance = recipe.eval, recipe.data, recipe.reward.numeric_tolerance
    packages = (*PACKAGES, *(("vllm",) if recipe.rollout.uses_vllm else ()))
    return {
        **common_protocol(recipe, target=target, adapter=adapter, resamples=resamples),
        "data": data.eval,
        "split": data.eval_split,
        "data_digest": fingerprint(problems),
        "pixels_digest": pixels_digest(problems),
        "problems": len(problems),
        **({"bad_rows_skipped": bad_rows_skipped} if bad_rows_skipped else {}),
        "samples": section.samples,
        "loader": recipe.model.loader,
        "dtype": str(policy.base_dtype).removeprefix("torch."),
        "load_in_4bit": recipe.model.load_in_4bit,
        "variants": ways,
        **_variants(recipe, problems, ways),
        "source_column": source_column,
        **({"numeric_tolerance": tolerance} if tolerance else {}),  # absent, as before there was one
        **_rewards(recipe),
        **{f"version_{name.replace('-', '_')}": installed_version(name) for name in packages},
    }


def common_protocol(recipe: Recipe, *, target: str, adapter: Path | None, resamples: int) -> dict[str, Scalar]:
    """What decides figures whoever asks and grades: model, prompt, sampling, intervals."""
    return {
        "target": target,
        "model": recipe.model.path,
        "adapter": None if adapter is None else str(adapter),
        "checkpoint": None if adapter is None else adapter.name,
        "adapter_sha256": None if adapter is None else adapter_digest(adapter),
        "temperature": recipe.eval.temperature,
        "top_p": recipe.eval.top_p,
        "max_completion_length": recipe.rollout.max_completion_length,
        "seed": recipe.seed,
        "engine": recipe.rollout.engine,
        "min_pixels": recipe.model.min_pixels,
        "max_pixels": recipe.model.max_pixels,
        "prompt_template": recipe.data.prompt_template,
        "system_prompt": recipe.data.system_prompt,
        "prompt_sha256": _prompt_digest(recipe.data.prompt_template, recipe.data.system_prompt),
        "bootstrap_resamples": resamples,
        "confidence": LEVEL,
        "version_sharevl_lite": installed_version("sharevl-lite"),
    }


def _variants(recipe: Recipe, problems: Sequence[Problem], ways: str) -> dict[str, Scalar]:
    """What decides which variants are asked, besides the seed."""
    section = recipe.share.transforms
    told: dict[str, Scalar] = {"variant_kinds": ",".join(section.kinds)}
    if ways == "none":
        return told
    told |= {"variant_mirrors": section.allow_mirrors, "variant_guard": section.guard}
    told |= {"variant_probability": section.probability} if ways == "drawn" else {}
    return {**told, "variant_rows_digest": _rows_digest(problems)}


def _rows_digest(problems: Sequence[Problem]) -> str:
    """A digest of what each row says may be done to its images."""
    rows = [[p.allow_mirrors, None if p.transforms is None else sorted(p.transforms)] for p in problems]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def pixels_digest(problems: Sequence[Problem]) -> str:
    """A digest of all pictures as they are seen, whatever files they came in.

    Each file is decoded once for it, however many questions it has, by as many threads as there are cores.
    """
    distinct: dict[bytes | tuple[int, int], tuple[Sequence[Image], int]] = {}
    rows: list[list[bytes | tuple[int, int]]] = []
    for number, problem in enumerate(problems):
        files = problem.images.encoded if isinstance(problem.images, LazyImages) else None
        rows.append([(number, place) if files is None else files[place] for place in range(len(problem.images))])
        for place, file in enumerate(rows[-1]):
            distinct.setdefault(file, (problem.images, place))
    with ThreadPoolExecutor() as pool:
        shas = dict(zip(distinct, pool.map(_sha_of, distinct.values()), strict=True))
    return hashlib.sha256(json.dumps([[shas[file] for file in row] for row in rows]).encode()).hexdigest()


def _sha_of(found: tuple[Sequence[Image], int]) -> str:
    images, place = found
    image = images[place]
    return pixel_sha(image if image.mode == "RGB" else image.convert("RGB"))


def _rewards(recipe: Recipe) -> dict[str, Scalar]:
    """How the figures of rewards were computed; nothing without functions, for then there are none."""
    section = recipe.reward
    if not section.functions:
        return {}
    weights = {"accuracy": section.accuracy_weight, "format": section.format_weight}
    weights |= {name: entry.weight for name, entry in zip(section.names, section.functions, strict=True)}
    digests = [digest_of_file(entry.path) for entry in section.functions]
    return {
        "reward_weights": ", ".join(f"{name}={weight}" for name, weight in weights.items()),
        "reward_functions": ", ".join(f"{n}={digest}" for n, digest in zip(section.names, digests, strict=True)),
    }


def _prompt_digest(template: str, system_prompt: str | None) -> str:
    """A digest of the words around a question."""
    return hashlib.sha256(f"{template}\0{system_prompt}".encode()).hexdigest()
