"""What decides the figures of an evaluation, as scalars: the `protocol` of its document."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sharevl_lite.config import Recipe
from sharevl_lite.data.problem import Problem, fingerprint
from sharevl_lite.evaluation.document import Scalar
from sharevl_lite.evaluation.statistics import LEVEL
from sharevl_lite.policy.hf import adapter_digest
from sharevl_lite.policy.packed import PackedPolicy

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
) -> dict[str, Scalar]:
    """The protocol of an evaluation of `target`, with `adapter` the folder of its adapter."""
    section, data, tolerance = recipe.eval, recipe.data, recipe.reward.numeric_tolerance
    packages = (*PACKAGES, *(("vllm",) if recipe.rollout.engine in ("vllm", "unsloth") else ()))
    return {
        **common_protocol(recipe, target=target, adapter=adapter, resamples=resamples),
        "data": data.eval,
        "split": data.eval_split,
        "data_digest": fingerprint(problems),
        "problems": len(problems),
        "samples": section.samples,
        "loader": recipe.model.loader,
        "dtype": str(policy.base_dtype).removeprefix("torch."),
        "load_in_4bit": recipe.model.load_in_4bit,
        "variants": ways,
        "variant_kinds": ",".join(recipe.share.transforms.kinds),
        "source_column": source_column,
        **({"numeric_tolerance": tolerance} if tolerance else {}),  # absent, as before there was one
        **{f"version_{name.replace('-', '_')}": _version(name) for name in packages},
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
        "version_sharevl_lite": _version("sharevl-lite"),
    }


def _prompt_digest(template: str, system_prompt: str | None) -> str:
    """A digest of the words around a question."""
    return hashlib.sha256(f"{template}\0{system_prompt}".encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # vLLM's CPU build has another name
        return None
