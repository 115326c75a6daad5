"""Loads a policy with transformers and PEFT, on any device; saves and restores its adapter.

Adapters sit on the linear layers of the text model and are float32 whatever the base is. Restoring is strict: a missing
or unknown tensor is an error, because PEFT and transformers only warn and a run that silently lost its adapter looks
like a run that does not learn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharevl_lite.config_model import LoraSection, ModelSection
from sharevl_lite.errors import first_line
from sharevl_lite.policy.adapter_start import adapter_folder
from sharevl_lite.policy.attention import check_full_attention
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.folder import ADAPTER_CONFIG, ADAPTER_FILE, BUILTIN_PREFIX, check_folder, resolve_model_path
from sharevl_lite.policy.fused import fuse
from sharevl_lite.policy.packed import HALF, PackedPolicy

SUPPORTED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def default_device() -> torch.device:
    """This process's CUDA device (by LOCAL_RANK, as torchrun sets it), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def load_base(section: ModelSection, device: torch.device) -> tuple[Any, Any]:
    """The frozen base model and its processor, with the recipe's pixel bounds set.

    Raises PolicyError when the path does not load or the model's family is not supported.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    check_supported(section.path)
    path = resolve_model_path(section.path)
    dtype = dtype_of(section, device)
    if section.load_in_4bit and device.type == "cpu":
        raise PolicyError("model.load_in_4bit needs a GPU (bitsandbytes cannot train on a CPU); leave it out here")
    quantised = {"quantization_config": four_bits(dtype), "device_map": {"": device}} if section.load_in_4bit else {}
    with _said_as_policy_error(section.path):
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation="sdpa", **quantised)
        processor = AutoProcessor.from_pretrained(path)
    bound_pixels(processor, section)
    if not section.load_in_4bit:
        model.to(device)
    model.eval().requires_grad_(False)
    return model, processor


def check_supported(path: str) -> None:
    """Raises PolicyError where the model's configuration does not load, or its family or attention is not supported."""
    from transformers import AutoConfig

    if not path.startswith(BUILTIN_PREFIX):
        check_folder(path)
    with _said_as_policy_error(path):
        config = AutoConfig.from_pretrained(resolve_model_path(path))
    if config.model_type not in SUPPORTED:
        raise PolicyError(
            f"model.path: {path!r} is a {config.model_type!r} model; supported are {', '.join(SUPPORTED)}"
        )
    _check_attention(path, config)


def load_policy(section: ModelSection, *, seed: int, temperature: float = 1.0) -> PackedPolicy:
    """Base model plus a fresh adapter whose random half is fixed by `seed`, on this process's device."""
    from peft import LoraConfig, get_peft_model

    model, processor = load_base(section, default_device())
    lora = section.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=text_layers(model, lora.target_modules),
        bias="none",
    )
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise PolicyError(f"model.lora.target_modules: {error}") from error
    if section.gradient_checkpointing:
        enable_checkpointing(adapted)
        limit_checkpointing(adapted, section.checkpointing_layers)
    return finish_policy(adapted, processor, section, temperature=temperature)


def enable_checkpointing(adapted: Any) -> None:
    """Has every layer recomputed in the backward pass."""
    # transformers 5.23 changed the name.
    enable = getattr(adapted, "activation_checkpointing_enable", None) or adapted.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def limit_checkpointing(adapted: Any, layers: int | None) -> None:
    """Leaves so many text layers to be recomputed, all if None: the first ones, because what the others keep is gone in
    the backward pass by the time that these need memory."""
    for layer in adapted.get_base_model().model.language_model.layers[layers:] if layers is not None else ():
        layer.gradient_checkpointing = False


def finish_policy(adapted: Any, processor: Any, section: ModelSection, *, temperature: float) -> PackedPolicy:
    """The policy of an adapted model, whoever loaded it: float32 adapters and nothing else trained, bounds on pixels.

    Raises PolicyError where the output layer would be trained, or something else than linear layers.
    """
    head = adapted.get_base_model().get_output_embeddings()
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise PolicyError("model.lora.target_modules adapts the output layer, which is scored frozen; leave it out")
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A") and not isinstance(module.get_base_layer(), nn.Linear):
            raise PolicyError(
                f"model.lora.target_modules adapts {name.removeprefix('base_model.model.')}, a "
                f"{type(module.get_base_layer()).__name__}: adapters are for linear layers, others would not be merged"
            )
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    bound_pixels(processor, section)
    policy = PackedPolicy(adapted, processor, temperature=temperature)
    if policy.base_dtype in HALF:
        _leave_casting_to_autocast(adapted)
        fuse(adapted)
    return policy


def _leave_casting_to_autocast(adapted: Any) -> None:
    """PEFT widens every layer's input to the adapter's float32, and autocast narrows it again: the same bits for two
    passes over the activations more. A policy never runs without autocast."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def save_adapter(policy: PackedPolicy, folder: Path) -> None:
    """Writes the adapter (PEFT's files, tensors as they are: float32) into `folder`.

    A base from this machine is named by its folder alone: an adapter may be uploaded, and others have no such path.
    PEFT's model card, a form nobody has filled in, would name the path as well and is left out.
    """
    policy.model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / ADAPTER_CONFIG
    config = json.loads(file.read_text("utf-8"))
    base = Path(config["base_model_name_or_path"] or "")
    if base.is_dir():
        file.write_text(json.dumps(config | {"base_model_name_or_path": base.name}, indent=2) + "\n", "utf-8")


def load_adapter(policy: PackedPolicy, folder: Path) -> None:
    """Restores an adapter saved by :func:`save_adapter`, strictly. Raises PolicyError if any tensor does not match."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    file, saved = folder / ADAPTER_FILE, read_adapter(folder)
    current = get_peft_model_state_dict(policy.model)
    wrong = sorted(saved.keys() ^ current.keys())
    wrong += [name for name in saved.keys() & current.keys() if saved[name].shape != current[name].shape]
    if wrong:
        raise PolicyError(
            f"{file} does not fit this model and model.lora ({len(wrong)} tensors differ, such as {wrong[0]}); use the "
            "recipe it was trained with"
        )
    set_peft_model_state_dict(policy.model, saved)


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved adapter, by PEFT's names. Raises PolicyError where they are missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / ADAPTER_FILE
    if not file.is_file():
        raise PolicyError(f"{folder} holds no {ADAPTER_FILE}")
    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise PolicyError(f"{file} is damaged ({error}); use another checkpoint, or copy the file again") from error


def write_adapter(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes what :func:`read_adapter` reads, without PEFT's configuration."""
    from safetensors.torch import save_file

    save_file(dict(tensors), str(folder / ADAPTER_FILE))


def adapter_tensors(policy: PackedPolicy) -> dict[str, Tensor]:
    """A copy of the adapter's tensors in main memory, by PEFT's names."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(policy.model)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


@contextlib.contextmanager
def other_adapter(policy: PackedPolicy, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the policy has these tensors of its own adapter's shape; afterwards those of before again."""
    from peft import set_peft_model_state_dict

    kept = adapter_tensors(policy)
    set_peft_model_state_dict(policy.model, dict(tensors))
    try:
        yield
    finally:
        set_peft_model_state_dict(policy.model, kept)


def start_from(policy: PackedPolicy, lora: LoraSection) -> None:
    """Takes over the weights of `lora.start_from`: a run's adapter, or one that PEFT saved.

    Raises PolicyError where it is none, was made for other layers, or scales its update otherwise.
    """
    folder = adapter_folder(lora)
    try:
        load_adapter(policy, folder)
    except PolicyError as error:
        raise PolicyError(f"model.lora.start_from: {error}") from error


def adapter_digest(folder: Path) -> str:
    """A digest of an adapter's weights, in hexadecimal: the same path may hold others later. Raises PolicyError."""
    if not (folder / ADAPTER_FILE).is_file():
        raise PolicyError(f"{folder} holds no {ADAPTER_FILE}")
    with (folder / ADAPTER_FILE).open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()


def has_bfloat16(device: torch.device | int = 0) -> bool:
    """Whether this GPU computes in bfloat16 itself: from Ampere on, where the kernels run as well.

    `torch.cuda.is_bf16_supported` is no answer: it counts emulation, which a T4 has as well, and Unsloth replaces it.
    """
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def dtype_of(section: ModelSection, device: torch.device) -> torch.dtype:
    """Precision of the base on a device: the recipe's, or what the device is best at. 4-bit bases compute in it."""
    if section.dtype != "auto":
        chosen: torch.dtype = getattr(torch, section.dtype)
        return chosen
    if device.type == "cuda" and has_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" and section.load_in_4bit else torch.float32


def four_bits(dtype: torch.dtype) -> Any:
    """NF4 (arXiv 2305.14314) for the text layers; the vision tower and the head stay in `dtype`.

    Raises PolicyError without bitsandbytes.
    """
    if find_spec("bitsandbytes") is None:
        raise PolicyError(
            "model.load_in_4bit: bitsandbytes is not installed; pip install bitsandbytes, or leave it out"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[r".*visual\.", "visual", "lm_head"],  # transformers matches the first, vLLM the second
    )


@contextlib.contextmanager
def _said_as_policy_error(path: str) -> Iterator[None]:
    """What transformers and safetensors raise for a model that is missing, incomplete or none."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        here = path.startswith(BUILTIN_PREFIX) or Path(path).exists()
        taken = "" if here else "no such path here, so it is taken for a Hub id: "
        raise PolicyError(
            f"model.path: cannot load {path!r} ({taken}{first_line(error)}); give a local folder, a "
            "Hub id you can reach, or builtin:digits-vl"
        ) from error


def _check_attention(path: str, config: Any) -> None:
    try:
        check_full_attention(config)
    except ValueError as error:
        raise PolicyError(f"model.path: {path!r}: {error}") from error


def check_processor(path: str, processor: Any) -> None:
    """Raises PolicyError for a tokenizer alone, which transformers gives where a folder holds no more."""
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise PolicyError(
            f"model.path: {path!r} holds no processor of images (preprocessor_config.json, or processor_config.json); "
            "copy it there from the model that it was made of"
        )


def bound_pixels(processor: Any, section: ModelSection) -> None:
    """Sets the recipe's bounds on a processor. Raises PolicyError where they cross, or it reads no images."""
    check_processor(section.path, processor)
    size = processor.image_processor.size
    if section.min_pixels is not None:
        size["shortest_edge"] = section.min_pixels
    if section.max_pixels is not None:
        size["longest_edge"] = section.max_pixels
    if size["shortest_edge"] > size["longest_edge"]:
        raise PolicyError(
            f"model.min_pixels ({size['shortest_edge']}) is above model.max_pixels ({size['longest_edge']})"
        )


def text_layers(model: nn.Module, wanted: str | list[str]) -> str | list[str]:
    """Full names of the text model's linear layers, all or those with a wanted ending: the vision tower, whose layers
    have the same endings, stays frozen. A regular expression is taken as it is."""
    if isinstance(wanted, str) and wanted != "all-linear":
        return wanted
    linear = linear_layers_of_text(model)
    if wanted == "all-linear":
        return list(linear)
    check_endings(linear, wanted)
    return [name for name in linear if has_ending(name, wanted)]


def check_endings(linear: Iterable[str], wanted: Iterable[str]) -> None:
    """Raises PolicyError where no linear layer of the text model, of these names, has one of the wanted endings."""
    names = list(linear)
    for ending in wanted:
        if not any(has_ending(name, [ending]) for name in names):
            endings = sorted({name.rpartition(".")[2] for name in names})
            raise PolicyError(
                f"model.lora.target_modules: no linear layer of the text model ends in {ending!r}; there are "
                f"{', '.join(endings)}"
            )


def check_context(config: Any, longest: int) -> None:
    """Raises PolicyError where a response of `longest` tokens does not fit among the model's positions."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if most is not None and longest > most:
        raise PolicyError(
            f"rollout.max_completion_length: {longest:,} tokens, and the model has {most:,} positions for prompt and "
            "response together; lower it"
        )


def linear_layers_of_text(model: nn.Module) -> dict[str, nn.Linear]:
    """The text model's linear layers by their full names."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".language_model." in f".{name}."
    }


def has_ending(name: str, endings: Iterable[str]) -> bool:
    """Whether the last parts of a layer's full name are one of these."""
    return any(f".{name}".endswith(f".{ending}") for ending in endings)
