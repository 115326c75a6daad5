"""Loads a policy with Unsloth: its weights in 4 or 16 bits and its offloaded checkpointing, as `policy.hf` does.

Unsloth patches transformers when it is imported, so it comes first: the command line calls :func:`import_unsloth`
before anything heavy, and so does a script, before whatever imports transformers. `import unsloth` alone is too little:
`SETTINGS` are read in that moment. Its compilation of whole blocks is switched off, because it does not get through a
packed row's attention (UNSLOTH_COMPILE_DISABLE=0 in the environment asks for it). Vision models then run transformers'
layers, which `policy.fused` shortens.

With `rollout.engine: unsloth` the model is rebuilt around the weights of a vLLM engine. Three things are mended then:
Qwen2.5-VL's vision tower (:func:`_know_vision_tower`), the generation settings, and the attention of layers whose
configurations are copies (`policy.attention`). A tower that is cut all the same is refused: :func:`check_vision_tower`.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharevl_lite.config import Recipe
from sharevl_lite.config_model import ModelSection
from sharevl_lite.errors import INSTALL_GPU, INSTALL_UNSLOTH, first_line
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.vllm_start import starting_vllm

if TYPE_CHECKING:
    from sharevl_lite.policy.packed import PackedPolicy

SETTINGS = {
    "UNSLOTH_AUTO_INSTALL": "0",  # it would install packages while it saves
    "UNSLOTH_COMPILE_DISABLE": "1",
    "UNSLOTH_COMPILE_LOCATION": str(Path.home() / ".cache" / "sharevl-lite" / "unsloth"),  # not the current folder
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_LLAMA_CPP_OFFLINE": "1",
}
"""Environment that Unsloth reads while it is imported or saves; what the user has set stays."""
VISION_TYPE = "qwen2_5_vl_vision"
LLAMA_CPP = ("UNSLOTH_LLAMA_CPP_PATH", "UNSLOTH_LLAMA_CPP_SCRIPTS_DIR")
"""Where it looks for llama.cpp's programs and its converter: in LLAMA_CPP_DIR, where that is set."""


def check_installed(*, beside_vllm: bool) -> None:
    """Raises PolicyError where Unsloth is not installed, saying how with or without vLLM."""
    if find_spec("unsloth") is None:
        install = INSTALL_GPU if beside_vllm else INSTALL_UNSLOTH
        raise PolicyError(f"model.loader: Unsloth is not installed; {install}, or choose model.loader: hf")


def import_unsloth(*, beside_vllm: bool = False) -> Any:
    """The module. Raises PolicyError where it is not installed, saying how with or without vLLM, or finds no GPU."""
    check_installed(beside_vllm=beside_vllm)
    settings = dict(SETTINGS)
    if folder := os.environ.get("LLAMA_CPP_DIR"):
        settings |= dict.fromkeys(LLAMA_CPP, str(Path(folder).expanduser()))
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        import unsloth
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise PolicyError(
            f"model.loader: Unsloth does not start here ({first_line(error)}); it needs a GPU and what it was built "
            "for (see sharevl-lite doctor), or choose model.loader: hf"
        ) from error
    return unsloth


def load_policy(recipe: Recipe) -> PackedPolicy:
    """Base model plus a fresh adapter, as :func:`sharevl_lite.policy.hf.load_policy` makes them.

    Raises PolicyError where Unsloth does not start or the model does not load.
    """
    unsloth = import_unsloth()
    from sharevl_lite.policy.hf import finish_policy, limit_checkpointing, text_layers

    section = recipe.model
    loader = unsloth.FastVisionModel
    model, processor = _load_base(loader, recipe)
    check_vision_tower(model)
    adapted = loader.get_peft_model(
        model,
        r=section.lora.rank,
        lora_alpha=section.lora.alpha,
        lora_dropout=section.lora.dropout,
        bias="none",
        target_modules=_endings(text_layers(model, section.lora.target_modules)),
        finetune_vision_layers=False,
        finetune_language_layers=True,
        finetune_attention_modules=True,
        finetune_mlp_modules=True,
        random_state=recipe.seed,
        use_gradient_checkpointing=_checkpointing(section),
    )
    policy = finish_policy(adapted, processor, section, temperature=recipe.rollout.temperature)
    loader.for_training(adapted, use_gradient_checkpointing=section.gradient_checkpointing)
    limit_checkpointing(adapted, section.checkpointing_layers)
    return policy


def _load_base(loader: Any, recipe: Recipe) -> tuple[Any, Any]:
    from sharevl_lite.policy.errors import PolicyError
    from sharevl_lite.policy.hf import check_supported, default_device, dtype_of, resolve_model_path

    section = recipe.model
    path = resolve_model_path(section.path)
    check_supported(section.path)
    device = default_device()
    shared: dict[str, Any] = {}
    longest = recipe.max_sequence_length
    if recipe.rollout.engine == "unsloth":
        shared = {
            "fast_inference": True,
            "gpu_memory_utilization": recipe.rollout.vllm_gpu_memory_utilization,
            "max_lora_rank": section.lora.rank,
            "max_num_seqs": recipe.rollout.batch_size,
            "enforce_eager": recipe.rollout.vllm_enforce_eager,
        }
    try:
        with starting_vllm() if shared else nullcontext():
            if shared:
                _know_vision_tower()
            model, processor = loader.from_pretrained(
                path,
                max_seq_length=longest if shared else max(recipe.train.token_budget, longest),
                dtype=dtype_of(section, device),
                load_in_4bit=section.load_in_4bit,
                device_map={"": str(device)},
                use_gradient_checkpointing=_checkpointing(section),
                random_state=recipe.seed,
                use_exact_model_name=True,  # else another repository is loaded, one of Unsloth's own in 4 bits
                offload_embedding=False,  # the policy is where its embedding is
                **shared,
            )
    except (OSError, KeyError, RuntimeError, NotImplementedError, ImportError) as error:
        raise PolicyError(
            f"model.path: Unsloth cannot load {section.path!r} ({first_line(error)}); check it with sharevl-lite "
            "doctor, or choose model.loader: hf"
        ) from error
    if shared:
        model.generation_config = _generation_settings(path, model)
    return model, processor


def _know_vision_tower() -> None:
    """Tells Unsloth that Qwen2.5-VL's vision tower has q, k and v in one matrix.

    Unsloth 2026.10.9 looks for the type of the tower's own configuration in a list that has the model's: it would take
    the matrix apart and keep v alone.
    """
    import unsloth_zoo.empty_model
    import unsloth_zoo.vllm_utils

    for module in (unsloth_zoo.empty_model, unsloth_zoo.vllm_utils):
        known = getattr(module, "QWEN_VL_MERGED_QKV_TYPES", ())
        if "qwen2_5_vl" in known and VISION_TYPE not in known:
            module.QWEN_VL_MERGED_QKV_TYPES = (*known, VISION_TYPE)


def _generation_settings(path: str, model: Any) -> Any:
    """The checkpoint's own, with all tokens that end a response: a rebuilt model has only one."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # it has none
        return model.generation_config


def check_vision_tower(model: Any) -> None:
    """Raises PolicyError where an attention layer of the vision tower does not hold q, k and v for its width."""
    for number, block in enumerate(model.model.visual.blocks):
        projection = block.attn.qkv
        if hasattr(projection.weight, "quant_state"):  # in 4 bits: its rows are not the layer's
            continue
        rows, width = projection.weight.shape
        if rows != 3 * width:
            raise PolicyError(
                f"rollout.engine: the vision tower that Unsloth shares with vLLM is cut (block {number}: qkv of {rows} "
                f"rows for a width of {width}, not {3 * width}): it cannot score images. Choose rollout.engine: vllm, "
                "or another pair of versions"
            )


def _endings(layers: str | list[str]) -> str | list[str]:
    """Unsloth wants the last parts of the names, and leaves the vision tower out itself; an expression stays."""
    return layers if isinstance(layers, str) else sorted({name.rpartition(".")[2] for name in layers})


def _checkpointing(section: ModelSection) -> str | bool:
    """Unsloth's own checkpointing, which keeps activations in the host's memory."""
    return "unsloth" if section.gradient_checkpointing else False
