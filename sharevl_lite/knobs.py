"""Every knob of a recipe with its type, default and meaning, read off the models of ``config``.

One source of truth: the JSON schema that pydantic derives from the models also feeds ``train --help``, the wording of
recipe errors and the "did you mean" of an unknown key. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sharevl_lite.config import Recipe

Schema = dict[str, Any]

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    name: tuple(keys.split())
    for keys, names in {
        "name": "run_name experiment_name",
        "output_dir": "save_checkpoint_path default_local_dir",
        "model.path": "model_name_or_path model_path model_id model_name",
        "model.dtype": "torch_dtype bf16 fp16",
        "model.gradient_checkpointing": "enable_gradient_checkpointing use_gradient_checkpointing",
        "model.lora.rank": "r lora_r lora_rank",
        "model.lora.alpha": "lora_alpha",
        "model.lora.dropout": "lora_dropout",
        "model.lora.target_modules": "lora_target_modules",
        "data.train": "dataset dataset_name train_dataset train_files",
        "data.eval": "eval_dataset val_files",
        "data.train_split": "dataset_train_split",
        "data.eval_split": "dataset_test_split",
        "data.columns.problem": "prompt_key",
        "data.columns.images": "image_key",
        "data.columns.answer": "answer_key",
        "data.columns.choices": "options",
        "data.prompt_template": "format_prompt",
        "share.num_responses": "n num_generations group_size",
        "share.std": "scale_rewards norm_adv_by_std_in_grpo",
        "share.levels": "adv_estimator",
        "rollout.engine": "use_vllm vllm_mode",
        "rollout.max_completion_length": "max_response_length response_length max_new_tokens",
        "rollout.vllm_gpu_memory_utilization": "gpu_memory_utilization",
        "rollout.vllm_enforce_eager": "enforce_eager",
        "rollout.server_urls": "vllm_server_base_url vllm_server_host vllm_server_port",
        "rollout.server_timeout_seconds": "vllm_server_timeout",
        "rollout.dynamic_sampling": "online_filtering filter_groups filter_groups.enable",
        "rollout.max_extra_rounds": "max_num_gen_batches",
        "reward.functions": "reward_funcs reward_weights reward_function custom_reward_function.path",
        "objective.aggregation": "loss_type loss_agg_mode loss_avg_mode",
        "objective.epsilon": "clip_ratio clip_ratio_low cliprange",
        "objective.epsilon_high": "clip_ratio_high",
        "objective.delta": "clip_ratio_c clip_ratio_dual",
        "objective.beta": "kl_coef kl_loss_coef use_kl_loss",
        "objective.mask_truncated_completions": "overlong_filtering",
        "objective.sampler_cap": "vllm_importance_sampling_cap vllm_importance_sampling_clip_max tis_imp_ratio_cap",
        "train.learning_rate": "lr",
        "train.lr_scheduler_type": "lr_scheduler lr_warmup_style warmup_style",
        "train.warmup_updates": "warmup_steps warmup_ratio lr_warmup_steps lr_warmup_ratio",
        "train.max_grad_norm": "grad_clip grad_norm",
        "train.rollouts": "max_steps num_train_epochs total_epochs total_training_steps num_steps epochs",
        "train.problems_per_rollout": "train_batch_size rollout_batch_size generation_batch_size",
        "train.problems_per_update train.token_budget": "per_device_train_batch_size gradient_accumulation_steps",
        "train.problems_per_update": "global_batch_size ppo_mini_batch_size steps_per_generation",
        "train.token_budget": "ppo_max_token_len_per_gpu ppo_micro_batch_size_per_gpu micro_batch_size",
        "train.epochs_per_rollout": "num_iterations ppo_epochs",
        "train.save_rollouts": "save_steps save_freq",
        "train.save_total_limit": "save_limit max_actor_ckpt_to_keep",
        "train.report_to": "logger",
        "eval.every_rollouts": "eval_steps test_freq val_freq",
        "eval.samples": "num_generations_eval",
    }.items()
    for name in names.split()
}
"""What TRL's GRPOConfig and ModelConfig, EasyR1 and verl call a knob, where it is not our name, with our keys: what is
set by it there is set by them here, if in other units (a step is a rollout, a batch counts problems). A name with a dot
is met by the last two parts of a key."""


@dataclass(frozen=True)
class Knob:
    """One value that a recipe or the command line can set."""

    name: str
    """Dotted name with dashes: `share.num-variants`."""
    type: str
    """What is allowed, in words: `int >= 1`, `plain | repeated`, `list of text`."""
    default: object
    """Value when nothing sets it (JSON types; a path is text)."""
    doc: str
    """The field's docstring; empty where the name says it all."""
    takes_text: bool
    """Whether free text is allowed, so that `--name 7` means the text "7"."""
    items: Literal["text", "mapping"] | None = None
    """What the list holds where a list is all that is allowed: `text`, of a choice too, or mappings."""

    @property
    def key(self) -> str:
        """Dotted name as a recipe file spells it: `share.num_variants`."""
        return self.name.replace("-", "_")

    @property
    def section(self) -> str:
        """Dotted key of the section that holds the knob; empty for the top level."""
        return self.key.rpartition(".")[0]


@cache
def sections() -> dict[str, str]:
    """Dotted key of every section, outer ones first, with its docstring."""
    return {key: schema.get("description", "") for key, schema in _walk("", _schema()) if "properties" in schema}


@cache
def find_knob(key: str) -> Knob | None:
    """The knob of a dotted key (underscores), or None."""
    return next((knob for knob in knobs() if knob.key == key), None)


def nearest_keys(key: str) -> list[str]:
    """Up to three valid dotted keys that an unknown `key` may have meant, best first; empty when nothing is near.

    The last part of the key counts more than where it stands: `num_variants` at the top level and
    `train.num_variants` both find `share.num_variants`. A section of that name is meant where no sibling is near. What
    other trainers call a knob is known by name.
    """
    wanted = key.replace("-", "_")
    section, _, leaf = wanted.rpartition(".")
    names = [name for name in _names() if not wanted.startswith(f"{name}.")]
    siblings = {_leaf(name): name for name in names if name.rpartition(".")[0] == section}
    in_full = OTHER_NAMES.get(".".join(wanted.split(".")[-2:]), ()) if section else ()
    near_siblings = [siblings[found] for found in difflib.get_close_matches(leaf, siblings, 3, cutoff=0.65)]
    same_leaf = [name for name in names if _leaf(name) == leaf and not (near_siblings and name in sections())]
    near_leaves = difflib.get_close_matches(leaf, sorted({_leaf(name) for name in names}), 1, cutoff=0.75)
    elsewhere = [name for name in names if _leaf(name) in near_leaves]
    return (list(in_full) or same_leaf or list(OTHER_NAMES.get(leaf, ())) or near_siblings or elsewhere)[:3]


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


@cache
def _schema() -> Schema:
    return Recipe.model_json_schema()


@cache
def knobs() -> tuple[Knob, ...]:
    """All knobs in the order of the models, sections unfolded."""
    leaves = ((key, schema) for key, schema in _walk("", _schema()) if "properties" not in schema)
    return tuple(
        Knob(
            name=key.replace("_", "-"),
            type=_in_words(schema),
            default=schema.get("default"),
            doc=" ".join(schema.get("description", "").split()),
            takes_text=any(_is_free_text(option) for option in _alternatives(schema)),
            items=_items(schema),
        )
        for key, schema in leaves
    )


@cache
def _names() -> tuple[str, ...]:
    """Keys that may stand in a recipe, those inside a list's items included (`reward.functions.weight`)."""
    names: list[str] = []
    for key, schema in _walk("", _schema()):
        names.append(key)
        item = _resolved(schema.get("items", {}))
        names.extend(f"{key}.{name}" for name in item.get("properties", {}))
    return tuple(names)


def _resolved(schema: Schema) -> Schema:
    """The schema with its `$ref` followed; what stands beside the reference wins."""
    if "$ref" not in schema:
        return schema
    target = _schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    return {**target, **{name: value for name, value in schema.items() if name != "$ref"}}


def _walk(prefix: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    for name, field in schema["properties"].items():
        key = f"{prefix}.{name}" if prefix else name
        resolved = _resolved(field)
        yield key, resolved
        if "properties" in resolved:
            yield from _walk(key, resolved)


def _alternatives(schema: Schema) -> list[Schema]:
    return [_resolved(option) for option in schema.get("anyOf", [schema])]


def _items(schema: Schema) -> Literal["text", "mapping"] | None:
    if schema.get("type") != "array":
        return None
    return "mapping" if "properties" in _resolved(schema["items"]) else "text"


def _is_free_text(schema: Schema) -> bool:
    return schema.get("type") == "string" and "enum" not in schema and "const" not in schema


def _in_words(schema: Schema) -> str:
    return " | ".join(_one_in_words(option) for option in _alternatives(schema))


def _one_in_words(schema: Schema) -> str:
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " | ".join(str(choice) for choice in schema["enum"])
    if "properties" in schema:
        fields = schema["properties"].items()
        return "{" + ", ".join(f"{name}: {_in_words(_resolved(field))}" for name, field in fields) + "}"
    if schema["type"] == "array":
        item = _in_words(_resolved(schema["items"]))
        return f"list of ({item})" if " | " in item and not item.startswith("{") else f"list of {item}"
    if schema["type"] == "string":
        return _text_in_words(schema)
    return _number_in_words(schema)


def _text_in_words(schema: Schema) -> str:
    if "pattern" in schema:
        return f"text matching {schema['pattern']}"
    return "path" if schema.get("format") == "path" else "text"


def _number_in_words(schema: Schema) -> str:
    words = {"integer": "int", "number": "float", "boolean": "true | false", "null": "null"}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[bound]:.12g}" for bound, sign in signs.items() if bound in schema]
    return " ".join(filter(None, (words[schema["type"]], " and ".join(limits))))
