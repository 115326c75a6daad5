"""Reads a 4-bit export from the disk and compares its weights and logits with those it was made of.

**Weights.** A packed weight is l·a', with l one of NF4's 16 levels and a' what double quantisation left of the largest
magnitude a in its block of 64. Of w it may be off by

    |l·a' - w| ≤ |l·a - w| + |l|·|a' - a| ≤ |nearest level · a - w| + |a' - a|

because l is the level nearest to w / a and |l| ≤ 1. The first term is at most half the widest gap between levels times
a, 0.152·a; what is allowed is the term itself, since half the widest gap would take most neighbouring levels, and so a
base without its adapter, for rounding. The second is what 8 bits do to a: at most half the widest gap of their own
levels, 0.007, times the largest |a - mean a| of 256 blocks.

**Logits.** NF4 itself moves a model's logits, often by more than a short run's adapter did, so how far the export is
from the merged model says little about the adapter: it is reported. What decides is the adapter's effect inside the 4
bits, the difference between merged and base model that were both packed,

    lost = rms((merged4 - base4) - (merged - base)) / rms(merged - base),

in which NF4's error of the base drops out. The base model itself, packed, has lost = 1; noise has more. Up to LOST,
0.7, the effect in 4 bits has a cosine of at least √(1 - 0.7²) = 0.71 with the adapter's: more than half of what it does
to the logits, as a mean square, is what was learned. Beyond that most of it is rounding, and the export is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sharevl_lite.export import nf4
from sharevl_lite.export.base import BaseModel, StoredTensor, read_tensor, stored_tensors
from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.four_bit import packed_names, packing_of
from sharevl_lite.export.probes import Probe, encode
from sharevl_lite.export.source import Source
from sharevl_lite.export.verify import (
    Expected,
    Logits,
    check_effect_is_there,
    check_inputs,
    loaded,
    logits_of,
    rms,
    some,
)

LOST = 0.7
"""Largest share of the adapter's effect on the logits that the 4 bits may lose. See above."""
STATE = "quant_state.bitsandbytes__nf4"
PARTS = (STATE, "absmax", "quant_map", "nested_absmax", "nested_quant_map")
"""What bitsandbytes stores beside a packed weight, under the weight's name and a dot."""
ROUNDING = 1e-5
"""Slack in units of a block's largest weight: w / a in float32 (1e-7), and levels written with seven digits."""
NESTED_SLACK = 1.02
"""In units of half the widest gap between the levels of the maxima; seen are up to 1.0007."""
CHUNK = 2**12
"""Blocks that are compared at a time."""

Weights = Callable[[str], Float[Tensor, "O I"]]
"""What a weight was packed from, by the checkpoint's name."""


@dataclass(frozen=True)
class Packed:
    """Figures of the packed weights. `worst` is the largest error of one, in units of its block's largest weight."""

    weights: int
    worst: float

    def sentence(self) -> str:
        """The figures in words."""
        return (
            f"{self.weights} weights of the text layers are packed in NF4, each the level nearest to its merged value "
            f"(off by {self.worst:.3f} of its block's largest weight at most), all other tensors are the merged "
            "model's bit for bit; it loads without a missing or unexpected key"
        )


@dataclass(frozen=True)
class Effect:
    """What the 4 bits left of the adapter's effect. Logits in nats, as root mean squares over all compared ones."""

    effect: float
    in_four_bits: float
    lost: float
    off: float
    """Of the export from the merged model in 16 bits, NF4's error of the base model included."""
    allowed: float

    def sentence(self) -> str:
        """The figures in words."""
        return (
            f"in 4 bits the adapter moves the logits by {self.in_four_bits:.3g} (root mean square; {self.effect:.3g} "
            f"in the merged model), {self.lost:.1%} of its effect is lost (allowed: {self.allowed:.0%}); the logits "
            f"are {self.off:.3g} from the merged model's, {self.off / self.effect:.1%} of the effect (computed in "
            "float32 from the unpacked weights)"
        )


def check_packed(base: BaseModel, folder: Path, wanted: Weights, *, slack: float = ROUNDING) -> Packed:
    """Compares every tensor of a 4-bit export with what it was made of.

    `wanted` gives each weight as it was before it was packed; `slack` is how far that may be off, in units of the
    largest of its block. Raises ExportError for the first tensor that is something else.
    """
    found = stored_tensors(folder)
    packed = {name.removesuffix(f".{STATE}") for name in found if name.endswith(STATE)}
    _check_names(base, found, packed)
    worst = 0.0
    for name in base.tensors:
        before = wanted(name)
        if name in packed:
            parts = {part: read_tensor(found[f"{name}.{part}"], f"{name}.{part}") for part in PARTS}
            weight = read_tensor(found[name], name)
            worst = max(worst, _check_weight(name, weight, parts, before, slack))
        elif not torch.equal(read_tensor(found[name], name), before):
            raise ExportError(f"the export's {name} is not the merged model's, though it is not packed")
    return Packed(len(packed), worst)


def _check_names(base: BaseModel, found: Mapping[str, StoredTensor], packed: set[str]) -> None:
    wanted = packed_names(base)
    if packed != wanted:
        raise ExportError(
            f"the export packs other weights than the text layers': {some(sorted(packed - wanted))} are packed, "
            f"{some(sorted(wanted - packed))} are not"
        )
    names = {*base.tensors, *(f"{name}.{part}" for name in packed for part in PARTS)}
    missing, extra = sorted(names - found.keys()), sorted(found.keys() - names)
    if missing or extra:
        raise ExportError(
            f"the export's tensors are not those of {base.name} in 4 bits: {len(missing)} missing ({some(missing)}), "
            f"{len(extra)} left over ({some(extra)})"
        )
    for name in base.tensors.keys() - packed:
        if (found[name].dtype, found[name].shape) != (base.tensors[name].dtype, base.tensors[name].shape):
            raise ExportError(
                f"the export's {name} is {found[name].dtype} {list(found[name].shape)}, in {base.name} it is "
                f"{base.tensors[name].dtype} {list(base.tensors[name].shape)}"
            )


def _check_weight(name: str, packed: Tensor, parts: Mapping[str, Tensor], wanted: Tensor, slack: float) -> float:
    """Compares one packed weight, block by block; returns its largest error in units of its block's largest weight."""
    state = _read_state(name, packed, parts, wanted)
    middles = (nf4.levels()[1:] + nf4.levels()[:-1]) / 2
    rough = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: state.absmax.numel()]
    step = NESTED_SLACK * float(state.state2.code.sort().values.diff().max()) / 2
    before_BS = nf4.in_blocks(wanted.float(), state.blocksize)
    after_BS = nf4.in_blocks(nf4.unpack(packed, state), state.blocksize)
    worst = 0.0
    pieces = (before_BS, after_BS, nf4.maxima(state)[:, None], (step * rough)[:, None])
    for before, after, maximum, coarse in zip(*(piece.split(CHUNK) for piece in pieces), strict=True):
        a = before.abs().amax(dim=1, keepdim=True)
        lost = (maximum - a).abs()
        unit = a.clamp(min=torch.finfo(torch.float32).tiny)  # of a block of zeros
        nearest = nf4.levels()[torch.bucketize(before / unit, middles)] * a
        error = (after - before).abs()
        right = (error <= (nearest - before).abs() + lost + slack * a) & (lost <= coarse + slack * a)
        if not bool(right.all()):
            raise ExportError(
                f"the export's {name} is not its merged weight in NF4: off by up to {float((error / unit).max()):.3g} "
                "of the largest weight of a block, where the nearest level and the rounding of the maximum explain less"
            )
        worst = max(worst, float((error / unit).max()))
    return worst


def _read_state(name: str, packed: Tensor, parts: Mapping[str, Tensor], wanted: Tensor) -> Any:
    from bitsandbytes.functional import QuantState

    try:
        state = QuantState.from_dict(dict(parts), device=torch.device("cpu"))
    except (AssertionError, KeyError, ValueError, AttributeError) as error:
        raise ExportError(
            f"the export's {name}: what bitsandbytes stores beside it cannot be read ({error})"
        ) from error
    odd = {
        "shape": tuple(state.shape) != tuple(wanted.shape),
        "type": state.dtype != wanted.dtype,
        "levels": not torch.allclose(state.code, nf4.levels(), rtol=0.0, atol=1e-6),
        "block size": state.blocksize != 64 or state.state2.blocksize != 256,
        "number of values": _sizes(packed, state) != _sizes_of(wanted.numel()),
    }
    if any(odd.values()):
        wrong = ", ".join(what for what, is_odd in odd.items() if is_odd)
        raise ExportError(f"the export's {name} is packed with another {wrong} than NF4 of its merged weight")
    return state


def _sizes(packed: Tensor, state: Any) -> tuple[int, ...]:
    """Of a packed weight, its blocks' maxima, their levels, and the maxima of those."""
    return packed.numel(), state.absmax.numel(), state.state2.code.numel(), state.state2.absmax.numel()


def _sizes_of(weights: int) -> tuple[int, ...]:
    blocks = -(-weights // 64)
    return -(-weights // 2), blocks, 256, -(-blocks // 256)


def check_effect(
    expected: Expected,
    whole: Sequence[Logits],
    source: Source,
    probes: Sequence[Probe],
    base: BaseModel,
    folder: Path,
    allowed: float,
) -> Effect:
    """Runs base and export in 4 bits and compares the adapter's effect there with that in `whole`, the logits of the
    merged model.

    Raises ExportError where the export does not load whole or says what differs, and where its effect is lost.
    """
    with loaded(base.folder, base.name, packing=packing_of(base)) as (model, processor):
        base_packed = logits_of(model, encode(processor, source, probes), probes)
    with loaded(folder, str(folder)) as (model, processor):
        inputs = encode(processor, source, probes)
        check_inputs(expected.inputs, inputs)
        export = logits_of(model, inputs, probes)
    return compare_effects(expected.base, whole, base_packed, export, allowed)


def compare_effects(
    base: Sequence[Logits],
    merged: Sequence[Logits],
    base_packed: Sequence[Logits],
    export: Sequence[Logits],
    allowed: float,
) -> Effect:
    """The figures. Raises ExportError without an effect, and where more than `allowed` of it is lost or logits are not
    finite."""
    plain, whole, plain4, found = (torch.cat(list(part)).double() for part in (base, merged, base_packed, export))
    if not bool(found.isfinite().all()):
        raise ExportError("the export's logits are not finite")
    effect, in_four_bits = whole - plain, found - plain4
    check_effect_is_there(rms(effect), rms(whole), len(base))
    lost = rms(in_four_bits - effect) / rms(effect)
    if not lost <= allowed:
        raise ExportError(
            f"the adapter's effect is lost in 4 bits: it moves the logits by {rms(effect):.3g} (root mean square), "
            f"between base and export in 4 bits they move by {rms(in_four_bits):.3g}, and in another way: {lost:.1%} "
            f"of the effect is lost where {allowed:.0%} is allowed. What was learned is too small for NF4's rounding: "
            "train longer, export with --format merged-16bit or lora, or allow more with --tolerance"
        )
    return Effect(rms(effect), rms(in_four_bits), lost, rms(found - whole), allowed)
