"""Runs the kernels of grouped_logprob over rows and vocabulary in bounded memory.

For each block of up to ROWS rows the vocabulary goes in chunks whose exponentials fill EXPONENTIALS_BYTES:

    scan      E = exp(z - z_y) of the chunk, and its sums         one GEMM, Triton
    product   G += E @ W of the chunk                             one GEMM, cuBLAS, float32 accumulator
    combine   sums → log-probs, entropies, factors
    unit      G → ∂log p/∂h in place

Chunks of the vocabulary, and not of the rows, keep both products at full size. The accumulator's extra traffic is
4·ROWS·H bytes twice a chunk, a few percent of a product; chunks of about 1,100 whole rows were no faster on an H100
(docs/LOG.md, 2026-11-27).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sharevl_kernels.grouped_logprob.body import torch_logprobs
from sharevl_kernels.grouped_logprob.kernel import (
    AMPERE,
    BLACKWELL,
    FLOAT32,
    HOPPER,
    ScanConfig,
    combine_kernel,
    reference_kernel,
    scan_kernel,
    unit_gradient_kernel,
)

ROWS = 8192
EXPONENTIALS_BYTES = 256 * 1024**2
STEEPEST = -69.0
"""Log-probs below it come from the torch body: their exponentials reach 2^100, near the end of the range."""
WEIGHT_BYTES = 64 * 1024**2
"""Most of the weight that is copied at a time where its dtype is not the exponentials'."""
REDO_ELEMENTS = 1 << 23
"""Logits of a chunk of rows that go through torch ops again: 32 MiB in float32."""
REFERENCE_ROWS = 64
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Chunk:
    """Columns `first` to `last` of the vocabulary; `first` is at a tile's start."""

    first: int
    last: int


def choose_config(hidden_TH: Tensor, weight_VH: Tensor) -> ScanConfig:
    """The tile for a device, dtype and width, by rule and not by trial: a run's numbers must not depend on timings."""
    if weight_VH.dtype == torch.float32:
        return FLOAT32
    # Consumer Blackwell (12) has neither wgmma nor tcgen05, and half the shared memory.
    tile = {9: HOPPER, 10: BLACKWELL}.get(torch.cuda.get_device_capability(weight_VH.device)[0], AMPERE)
    # The copy engine wants rows at multiples of 16 bytes; Hopper's tile without it would spill.
    places = (hidden_TH.shape[1] * hidden_TH.element_size(), hidden_TH.data_ptr(), weight_VH.data_ptr())
    return AMPERE if any(place % 16 for place in places) else tile


def kernel_logprobs(
    hidden_TH: Float[Tensor, "T H"],
    weight_VH: Float[Tensor, "V H"],
    targets_T: Int[Tensor, "T"],
    temperature: float,
    *,
    want_unit: bool,
    want_entropy: bool,
    config: ScanConfig | None = None,
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T_or_0"], Float[Tensor, "T H"]]:
    """Log-probs, entropies [T] and unit gradients [T, H] (empty where not wanted), float32.

    All inputs are contiguous. A target outside [0, V) gives 0.
    """
    config = config or choose_config(hidden_TH, weight_VH)
    count, width = hidden_TH.shape
    logprobs_T = hidden_TH.new_empty(count, dtype=torch.float32)
    entropies_T = hidden_TH.new_empty(count if want_entropy else 0, dtype=torch.float32)
    unit_TH = hidden_TH.new_empty((count if want_unit else 0, width), dtype=torch.float32)
    blocks = triton.cdiv(count, ROWS)
    rows = triton.cdiv(triton.cdiv(count, blocks), config.rows) * config.rows
    for start in range(0, count, rows):
        chosen = slice(start, start + rows)
        block = _Block(hidden_TH[chosen], weight_VH, targets_T[chosen], temperature, config)
        block.run(
            logprobs_T[chosen], entropies_T[chosen] if want_entropy else None, unit_TH[chosen] if want_unit else None
        )
    _redo_steep(hidden_TH, weight_VH, targets_T, temperature, logprobs_T, entropies_T, unit_TH)
    return logprobs_T, entropies_T, unit_TH


class _Block:
    """One block of rows against the whole vocabulary."""

    def __init__(
        self, hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor, temperature: float, config: ScanConfig
    ) -> None:
        self.hidden_RH = hidden_RH
        self.weight_VH = weight_VH
        self.targets_R = targets_R
        self.temperature = temperature
        self.config = config
        # float16 has no range for exponentials; bfloat16 has float32's.
        self.dtype = torch.float32 if weight_VH.dtype == torch.float32 else torch.bfloat16
        self.scale = LOG2_E / temperature

    def run(self, logprobs_R: Tensor, entropies_R: Tensor | None, unit_RH: Tensor | None) -> None:
        """Fills in what is given."""
        rows, vocabulary = self.hidden_RH.shape[0], self.weight_VH.shape[0]
        references_R = self._references()
        tiles = triton.cdiv(vocabulary, self.config.columns)
        sums = self.hidden_RH.new_empty((1 if entropies_R is None else 2, tiles, rows), dtype=torch.float32)
        chunks = list(self._chunks())
        buffer = None
        if unit_RH is not None:
            longest = max(chunk.last - chunk.first for chunk in chunks)
            buffer = self.hidden_RH.new_empty(rows * self._stride(longest), dtype=self.dtype)
        for chunk in chunks:
            self._scan(chunk, references_R, sums, buffer)
            if unit_RH is not None and buffer is not None:
                self._multiply(chunk, buffer, unit_RH)
        own_R, others_R = logprobs_R.new_empty((2, rows))
        combine_kernel[(triton.cdiv(rows, 32),)](
            sums[0],
            sums[-1],
            self.targets_R,
            logprobs_R,
            logprobs_R if entropies_R is None else entropies_R,
            own_R,
            others_R,
            rows,
            tiles,
            vocabulary,
            self.temperature,
            ROWS=32,
            TILES=32,
            MOMENT=entropies_R is not None,
            UNIT=unit_RH is not None,
        )
        if unit_RH is not None:
            width = unit_RH.shape[1]
            span = min(1024, triton.next_power_of_2(width))
            unit_gradient_kernel[(rows, triton.cdiv(width, span))](
                unit_RH, self.weight_VH, self.targets_R, own_R, others_R, width, WIDTH=span
            )

    def _references(self) -> Tensor:
        rows, width = self.hidden_RH.shape
        references_R = self.hidden_RH.new_empty(rows, dtype=torch.float32)
        reference_kernel[(triton.cdiv(rows, REFERENCE_ROWS),)](
            self.hidden_RH,
            self.weight_VH,
            self.targets_R,
            references_R,
            rows,
            self.weight_VH.shape[0],
            width,
            self.scale,
            ROWS=REFERENCE_ROWS,
            WIDTH=self.config.width,
        )
        return references_R

    def _stride(self, columns: int) -> int:
        return triton.cdiv(columns, self.config.columns) * self.config.columns

    def _chunks(self) -> Iterator[Chunk]:
        """The same with and without a gradient, so that both run the same launches."""
        vocabulary, tile = self.weight_VH.shape[0], self.config.columns
        fitting = EXPONENTIALS_BYTES // (self.hidden_RH.shape[0] * self.dtype.itemsize * tile)
        if self.weight_VH.dtype != self.dtype:
            fitting = min(fitting, WEIGHT_BYTES // (self.weight_VH.shape[1] * self.dtype.itemsize * tile))
        pieces = triton.cdiv(vocabulary, max(1, fitting) * tile)
        step = triton.cdiv(triton.cdiv(vocabulary, pieces), tile) * tile
        for first in range(0, vocabulary, step):
            yield Chunk(first, min(first + step, vocabulary))

    def _scan(self, chunk: Chunk, references_R: Tensor, sums: Tensor, buffer: Tensor | None) -> None:
        config = self.config
        hidden: Any = self.hidden_RH
        weight: Any = self.weight_VH[chunk.first : chunk.last]
        (rows, width), columns = hidden.shape, weight.shape[0]
        tiles = triton.cdiv(rows, config.rows) * triton.cdiv(columns, config.columns)
        if config.tma:
            hidden = TensorDescriptor.from_tensor(hidden, [config.rows, config.width])
            weight = TensorDescriptor.from_tensor(weight, [config.columns, config.width])
        scan_kernel[(min(tiles, _programs(self.hidden_RH)) if config.persistent else tiles,)](
            hidden,
            weight,
            self.targets_R,
            references_R,
            references_R.new_empty(1, dtype=self.dtype) if buffer is None else buffer,  # nothing is written without one
            sums[0],
            sums[-1],
            rows,
            columns,
            width,
            self._stride(columns),
            chunk.first,
            self.scale,
            rows if buffer is None else 0,
            ROWS=config.rows,
            COLUMNS=config.columns,
            WIDTH=config.width,
            GROUP=config.group,
            EVEN=columns % config.columns == 0,
            MOMENT=len(sums) > 1,
            TMA=config.tma,
            FLATTEN=config.persistent,
            PTX=self.hidden_RH.is_cuda,
            num_warps=config.warps,
            num_stages=config.stages,
        )

    def _multiply(self, chunk: Chunk, buffer: Tensor, unit_RH: Tensor) -> None:
        """unit_RH (+)= E @ W of the chunk, in float32."""
        rows, columns = unit_RH.shape[0], chunk.last - chunk.first
        stride = self._stride(columns)
        kept_RC = buffer[: rows * stride].view(rows, stride)[:, :columns]
        weight_CH = self.weight_VH[chunk.first : chunk.last].to(self.dtype)
        wide: Any = {} if self.dtype == torch.float32 else {"out_dtype": torch.float32}
        if chunk.first == 0:
            torch.mm(kept_RC, weight_CH, out=unit_RH, **wide)
        else:
            torch.addmm(unit_RH, kept_RC, weight_CH, out=unit_RH, **wide)


def _programs(tensor: Tensor) -> int:
    """Programs of a persistent launch: one a multiprocessor; a few under Triton's interpreter."""
    if not tensor.is_cuda:
        return 3
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def _redo_steep(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    temperature: float,
    logprobs_T: Tensor,
    entropies_T: Tensor,
    unit_TH: Tensor,
) -> None:
    """Rows of very improbable targets again, in place. Waits for the device, to see whether there are any."""
    steep = (logprobs_T < STEEPEST).nonzero().squeeze(1)
    if not steep.numel():
        return
    found = torch_logprobs(
        hidden_TH[steep],
        weight_VH,
        targets_T[steep],
        temperature,
        want_unit=unit_TH.numel() > 0,
        want_entropy=entropies_T.numel() > 0,
        chunk_elements=REDO_ELEMENTS,
    )
    for whole, part in zip((logprobs_T, entropies_T, unit_TH), found, strict=True):
        if whole.numel():
            whole[steep] = part
