"""Reads an export from the disk and compares it with the base model and PEFT's adapter.

Everything that is compared was loaded anew; nothing is taken over from the merge. The models are in memory one after
the other, in the precision they are stored in. See the package's text for what must hold.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sharevl_lite.errors import in_one_line
from sharevl_lite.export.adapter import PEFT_PREFIX
from sharevl_lite.export.arithmetic import float32_arithmetic
from sharevl_lite.export.base import COPIED, BaseModel, read_tensor, stored_tensors
from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.probes import Probe, encode
from sharevl_lite.export.source import Source
from sharevl_lite.policy.folder import ADAPTER_FILE
from sharevl_lite.policy.hf import default_device

TOLERANCES = {"F64": 0.01, "F32": 0.01, "F16": 0.1, "BF16": 0.3}
"""Largest error of the logits in units of the adapter's effect, both as root mean squares, by the stored type.

float32: the merge rounds by 6e-8 of a weight; errors seen are 1e-4 of the effect and below. 16 bits: each adapted
weight is off by up to half a step, 2^-9 (bfloat16) or 2^-12 (float16) of itself, however small its change. At 0.3 the
export does what the adapter does within a cosine of 0.95; beyond that it is another model.
"""
NOISE = 1e-5
"""An effect below this share of the logits' own size is not told from float32 rounding: it is none."""
BLOCK_ROWS = 1024
"""Rows of a weight that are compared at a time, in float64."""

Logits = Float[Tensor, "T V"]


@dataclass(frozen=True)
class Expected:
    """What base and adapter say on each probe, and what the base says alone."""

    inputs: list[dict[str, Tensor]]
    base: list[Logits]
    adapted: list[Logits]
    kept: float
    """Share of the adapter's change of the weights that the export's weights hold: <W' − W, ΔW> / <ΔW, ΔW>."""


@dataclass(frozen=True)
class Verification:
    """Figures of a passed verification. Logits in nats, as root mean squares over all compared ones."""

    prompts: int
    images: int
    positions: int
    effect: float
    error: float
    largest_error: float
    tolerance: float
    """Share of the effect that the error may have."""
    kept: float
    found: tuple[Logits, ...]
    """What the export says on each probe."""

    def sentence(self) -> str:
        """The figures in words."""
        return (
            f"logits at {self.positions} positions of {self.prompts} prompts with {self.images} images: the adapter "
            f"moves them by {self.effect:.3g} (root mean square), the export is off by {self.error:.2g}, "
            f"{self.error / self.effect:.2%} of that (allowed: {self.tolerance:.0%}; largest: {self.largest_error:.2g})"
        )


def check_files(base: BaseModel, folder: Path, patterns: tuple[str, ...] = COPIED) -> None:
    """Raises ExportError where a file that belongs to the model is missing or differs from the base's."""
    for file in base.files(patterns):
        name = file.relative_to(base.folder)
        if not (folder / name).is_file():
            raise ExportError(f"the export lacks {name}, which {base.name} has")
        if (folder / name).read_bytes() != file.read_bytes():
            raise ExportError(f"the export's {name} is not that of {base.name}")


def check_tensors(base: BaseModel, folder: Path) -> None:
    """Raises ExportError where names, shapes or types of the tensors are not the base checkpoint's."""
    found = stored_tensors(folder)
    missing, extra = sorted(base.tensors.keys() - found.keys()), sorted(found.keys() - base.tensors.keys())
    if missing or extra:
        raise ExportError(
            f"the export's tensors are not those of {base.name}: {len(missing)} missing ({some(missing)}), "
            f"{len(extra)} left over ({some(extra)})"
        )
    for name, tensor in base.tensors.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise ExportError(
                f"the export's {name} is {found[name].dtype} {list(found[name].shape)}, in {base.name} it is "
                f"{tensor.dtype} {list(tensor.shape)}"
            )


def expect(
    base: BaseModel, source: Source, probes: Sequence[Probe], merged: Path | None = None, *, steps: float = 0.5
) -> Expected:
    """Runs the base model and PEFT's adapter on it; compares the weights of `merged` with theirs, if it is given.

    `steps` is how far a merged weight may be off, in units of its last place. Raises ExportError.
    """
    with loaded(base.folder, base.name) as (model, processor):
        inputs = encode(processor, source, probes)
        peft = attach(model, source.adapter)
        with peft.disable_adapter():
            plain = logits_of(peft, inputs, probes)
        adapted = logits_of(peft, inputs, probes)
        kept = 1.0 if merged is None else check_weights(peft, base, merged, steps=steps)
    return Expected(inputs, plain, adapted, kept)


def attach(model: Any, adapter: Path) -> Any:
    """PEFT's adapter on a model. Raises ExportError where a tensor of it finds no place, or a place no tensor."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    peft = PeftModel.from_pretrained(model, str(adapter)).eval()
    saved, placed = load_file(str(adapter / ADAPTER_FILE)), get_peft_model_state_dict(peft, save_embedding_layers=False)
    if bad := sorted(name for name, tensor in saved.items() if not torch.isfinite(tensor).all()):
        raise ExportError(
            f"{adapter}: {len(bad)} of its {len(saved)} tensors hold NaN or infinities, such as {bad[0]}: the run has "
            "diverged. Export an earlier checkpoint with --checkpoint"
        )
    wrong = sorted(saved.keys() ^ placed.keys())
    wrong += [name for name in saved.keys() & placed.keys() if not torch.equal(saved[name].float(), placed[name].cpu())]
    if wrong:
        raise ExportError(f"{adapter}: {len(wrong)} tensors do not fit the base model, such as {wrong[0]}")
    return peft


def check_weights(peft: Any, base: BaseModel, folder: Path, *, steps: float = 0.5) -> float:
    """Compares every tensor of an export with the base's and PEFT's own idea of ΔW; returns the share of ΔW kept.

    Raises ExportError for the first weight that is off by more than `steps` units in the last place, and where the
    adapter changes nothing.
    """
    found = stored_tensors(folder)
    layers = {
        base.names[f"{name.removeprefix(PEFT_PREFIX)}.weight"]: module
        for name, module in peft.named_modules()
        if hasattr(module, "get_delta_weight") and peft.active_adapter in module.lora_A
    }
    kept = whole = 0.0
    for name, stored in base.tensors.items():
        before, after = read_tensor(stored, name), read_tensor(found[name], name)
        if name not in layers:
            if not torch.equal(before.to(after.dtype), after):
                raise ExportError(f"the export's {name} is not that of {base.name}, though no adapter changes it")
            continue
        delta = layers[name].get_delta_weight(peft.active_adapter).detach().cpu()
        for rows in zip(*(tensor.split(BLOCK_ROWS) for tensor in (before, after, delta)), strict=True):
            part, all_of_it = _check_rows(name, *rows, steps=steps)
            kept, whole = kept + part, whole + all_of_it
    if whole == 0.0:
        raise ExportError("the adapter changes no weight: it is zero, as before the first update. Choose a later one")
    return kept / whole


def _check_rows(name: str, before: Tensor, after: Tensor, delta: Tensor, *, steps: float) -> tuple[float, float]:
    """Compares some rows of a weight; returns <W' - W, ΔW> and <ΔW, ΔW> over them."""
    last_place = torch.finfo(after.dtype).eps
    before, after, delta = before.double(), after.double(), delta.double()
    wanted = before + delta
    # Two float32 matrix products of one ΔW differ by some 1e-7 of it, those of a GPU by more.
    allowed = wanted.abs() * (steps * last_place + 1e-7) + 1e-5 * delta.abs().max() + 3e-8
    error = (after - wanted).abs()
    if not bool((error <= allowed).all()):
        worst = int((error - allowed).nan_to_num(torch.inf).argmax())
        raise ExportError(
            f"the export's {name} is not W + ΔW: off by {float(error.flatten()[worst]):.3g}, where rounding explains "
            f"{float(allowed.flatten()[worst]):.3g}"
        )
    return float(((after - before) * delta).sum()), float(delta.square().sum())


def check_logits(
    expected: Expected, source: Source, probes: Sequence[Probe], folder: Path, tolerance: float, base: BaseModel | None
) -> Verification:
    """Loads an export and compares its inputs and logits. `base` is given for an adapter's folder, which goes onto it.

    Raises ExportError that says what differs.
    """
    with loaded(folder if base is None else base.folder, str(folder), processor=folder) as (model, processor):
        inputs = encode(processor, source, probes)
        check_inputs(expected.inputs, inputs)
        found = logits_of(model if base is None else attach(model, folder), inputs, probes)
    return compare(expected, found, probes, tolerance)


def compare(expected: Expected, found: Sequence[Logits], probes: Sequence[Probe], tolerance: float) -> Verification:
    """Figures of `found` against base + adapter. Raises ExportError beyond the tolerance, and without an effect."""
    base, adapted, export = (torch.cat(list(part)).double() for part in (expected.base, expected.adapted, found))
    effect, error = rms(adapted - base), rms(export - adapted)
    if not bool(export.isfinite().all()):
        raise ExportError("the export's logits are not finite; its type may be too narrow for the merged weights")
    check_effect_is_there(effect, rms(adapted), len(probes))
    if error > tolerance * effect or rms(export - base) <= tolerance * effect:
        raise ExportError(
            f"the export's logits are not those of base and adapter: off by {error:.3g} (root mean square), "
            f"{error / effect:.1%} of the {effect:.3g} by which the adapter moves them, where {tolerance:.0%} is "
            f"allowed; the weights hold {expected.kept:.1%} of the adapter's change. Where the weights are rightly "
            "rounded, the adapter is too weak for their type: export with --format lora, which loses nothing, or allow "
            "more with --tolerance"
        )
    return Verification(
        prompts=len(probes),
        images=sum(len(probe.images) for probe in probes),
        positions=len(adapted),
        effect=effect,
        error=error,
        largest_error=float((export - adapted).abs().max()),
        tolerance=tolerance,
        kept=expected.kept,
        found=tuple(found),
    )


def check_effect_is_there(effect: float, size: float, prompts: int) -> None:
    """Raises ExportError where an effect on logits of this size is none; both are root mean squares."""
    if effect <= NOISE * size:
        raise ExportError(
            f"the adapter does nothing to the logits on {prompts} prompts of the run (a change of {effect:.2g} in "
            f"{size:.3g}); choose a later checkpoint, or more prompts with --prompts"
        )


def tolerance_of(base: BaseModel) -> float:
    """The widest tolerance of the types that the base's tensors have. Raises ExportError for a type not known."""
    types = {tensor.dtype for tensor in base.tensors.values() if len(tensor.shape) > 1}
    if unknown := types - TOLERANCES.keys():
        raise ExportError(
            f"{base.name}: stores weights as {', '.join(sorted(unknown))}; merged are 16 and 32 bits only"
        )
    return max(TOLERANCES[kind] for kind in types)


@contextmanager
def loaded(folder: Path, name: str, processor: Path | None = None, packing: Any = None) -> Iterator[tuple[Any, Any]]:
    """A model and a processor from the disk, for as long as they are needed; quantised on the way with `packing`.

    Raises ExportError where it does not load whole, or the GPU does not hold it.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    gc.collect()  # what was loaded before: PEFT's wrappers refer to each other
    device = default_device()
    how: dict[str, Any] = {}
    if packing is not None:
        how = {"quantization_config": packing, "device_map": {"": device}}
    try:
        tools = AutoProcessor.from_pretrained(str(processor or folder))
        model, report = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype="auto", attn_implementation="sdpa", output_loading_info=True, **how
        )
    except (OSError, KeyError, ValueError) as error:
        raise ExportError(f"{name} does not load: {in_one_line(error)}") from error
    wrong = {kind: list(keys) for kind, keys in _complaints(report) if keys}
    if wrong:
        told = "; ".join(f"{len(keys)} {kind} ({some([str(key) for key in keys])})" for kind, keys in wrong.items())
        raise ExportError(f"{name} loads with {told}")
    try:
        yield model.to(device).eval(), tools
    except torch.cuda.OutOfMemoryError as error:
        raise ExportError(
            "the GPU's memory does not hold the model; CUDA_VISIBLE_DEVICES= verifies on the CPU"
        ) from error
    finally:
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _complaints(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        yield kind.replace("_", " "), report.get(kind)


@torch.no_grad()
def logits_of(model: Any, inputs: Sequence[Mapping[str, Tensor]], probes: Sequence[Probe]) -> list[Logits]:
    """Of the prompt's last token and of the response's tokens, in float32 arithmetic."""
    found = []
    with float32_arithmetic(model):
        for item, probe in zip(inputs, probes, strict=True):
            placed = {name: value.to(model.device) for name, value in item.items()}
            output = model(**placed, use_cache=False, logits_to_keep=len(probe.response) + 1)
            found.append(output.logits[0].float().cpu())
    return found


def check_inputs(expected: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]]) -> None:
    """Raises ExportError where the export's processor made other tensors of a probe than the base's."""
    for number, (before, after) in enumerate(zip(expected, found, strict=True)):
        odd = [name for name in before.keys() | after.keys() if not _equal(before.get(name), after.get(name))]
        if odd:
            raise ExportError(
                f"the export's processor makes other {', '.join(sorted(odd))} of prompt {number} than the base "
                "model's; a file of the tokenizer or the image processor is lost or differs"
            )


def _equal(before: Tensor | None, after: Tensor | None) -> bool:
    return before is not None and after is not None and torch.equal(before, after)


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def some(names: Sequence[str]) -> str:
    """The first three names, or a dash."""
    return ", ".join(names[:3]) or "-"
