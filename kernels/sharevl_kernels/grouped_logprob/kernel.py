"""Triton kernels of grouped_logprob, and their launches.

With the *relative exponentials* e_v = exp(z_v - z_y), v ≠ y (the target), everything follows from their sum S and from
G = Σ_v e_v W_v:

    log p(y)      = -log1p(S)                       exact at any margin: S keeps its digits where 1 - p would not
    entropy       = log1p(S) - Σ_v e_v log(e_v) / (1 + S)
    ∂log p(y)/∂h  = (S·W_y - G) / ((1 + S)·temperature)

The target's logit z_y is a dot product that is known before the first logit, so, unlike exp(z - max) or a softmax,
e_v needs no pass over the row first: the epilogue of the first GEMM takes it from the float32 accumulator, adds it up
in float32 and stores it once in the weight's dtype, and the second GEMM reads it from there. bfloat16 has float32's
range, so no maximum has to be subtracted; only a row whose target lies more than 100 powers of two below the others
(log p < -69 nats) could overflow, and the op computes such a row again the ordinary way.

Updates have other numbers of rows each time; nothing is compiled anew for one that is a multiple of 16 or is not.

Deleted from the textbook: the running maximum, the normalisation pass over the probabilities, the recomputation of
logits in the backward pass, and atomics: every sum has one order.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl


@dataclass(frozen=True)
class ScanConfig:
    """Tile and pipeline of the scan. `persistent`: one program per multiprocessor walks over the tiles."""

    rows: int
    columns: int
    width: int
    warps: int
    stages: int
    tma: bool = False
    persistent: bool = False
    group: int = 8


HOPPER = ScanConfig(rows=128, columns=256, width=64, warps=8, stages=3, tma=True, persistent=True)
BLACKWELL = ScanConfig(rows=128, columns=128, width=64, warps=8, stages=3, tma=True, persistent=True)
"""Of datacenter cards: with Hopper's tile the scan spills 476 bytes where it sums entropies too (Triton 3.8)."""
AMPERE = ScanConfig(rows=128, columns=128, width=32, warps=8, stages=3)
FLOAT32 = ScanConfig(rows=64, columns=64, width=32, warps=4, stages=2)


@triton.jit
def _block(operand, row, column, num_rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    """Tile [ROWS, WIDTH] of a row-major matrix at (row, column), 0 outside of it."""
    if TMA:
        tile = operand.load([row, column])
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, WIDTH)
        inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
        tile = tl.load(operand + rows.to(tl.int64)[:, None] * width + columns[None, :], mask=inside, other=0.0)
    return tile


@triton.jit
def _exp2(x, PTX: tl.constexpr):
    """2^x. The instruction itself on a GPU: tl.exp2 spends several more on results below 2^-126, which are 0 here."""
    if PTX:
        power = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        power = tl.exp2(x)
    return power


@triton.jit
def _epilogue(
    logits,
    targets,
    references,
    starts,
    stored,
    room,
    scale,
    EVEN: tl.constexpr,
    MOMENT: tl.constexpr,
    PTX: tl.constexpr,
):
    """Relative exponentials of a tile's columns: their sum and Σ e·log2(e) per row; stored in rows that are `stored`.

    `targets` count from the first of the columns, of which `room` exist.
    """
    columns = tl.arange(0, logits.shape[1])
    exponents = logits * scale - references[:, None]
    others = columns[None, :] != targets[:, None]
    if not EVEN:
        others = others & (columns < room)[None, :]
    exponentials = tl.where(others, _exp2(exponents, PTX), 0.0)
    # A mask, because a branch here keeps Triton 3.8 from joining the loops (its FuseNestedLoops fails on it).
    tl.store(starts[:, None] + columns[None, :], exponentials.to(starts.dtype.element_ty), mask=stored[:, None])
    sums = tl.sum(exponentials, 1)
    moments = sums
    if MOMENT:
        moments = tl.sum(exponentials * exponents, 1)
    return sums, moments


@triton.jit(do_not_specialize=["num_rows", "first_column", "first_stored"])
def scan_kernel(
    hidden,
    weight,
    targets_ptr,
    references_ptr,
    exponentials_ptr,
    sums_ptr,
    moments_ptr,
    num_rows,
    num_columns,
    width,
    exponentials_stride,
    first_column,
    scale,
    first_stored,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    MOMENT: tl.constexpr,
    TMA: tl.constexpr,
    FLATTEN: tl.constexpr,
    PTX: tl.constexpr,
):
    """Relative exponentials of a chunk of rows × columns of logits, with their sums per row and tile.

    `hidden` [rows, width] and `weight` [columns, width] are descriptors with TMA, pointers without. `references` holds
    z_y·log2(e)/temperature, `scale` is log2(e)/temperature. `exponentials_stride` is a multiple of COLUMNS: columns
    behind the last are written, as 0. Tiles go down GROUP blocks of rows before the next block of columns, so that a
    block of the weight is read from memory once per group.

    Exponentials are stored from row `first_stored` on (0: all; num_rows: none), a run-time value, so that a pass with
    and a pass without a gradient run the same binary and agree to the bit.
    """
    row_tiles = tl.cdiv(num_rows, ROWS)
    column_tiles = tl.cdiv(num_columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=FLATTEN):
        in_group = GROUP * column_tiles
        first_row_tile = tile // in_group * GROUP
        group = tl.minimum(row_tiles - first_row_tile, GROUP)
        row = (first_row_tile + tile % in_group % group) * ROWS
        column_tile = tile % in_group // group
        column = column_tile * COLUMNS

        logits = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for k in range(0, width, WIDTH):
            left = _block(hidden, row, k, num_rows, width, ROWS, WIDTH, TMA)
            right = _block(weight, column, k, num_columns, width, COLUMNS, WIDTH, TMA)
            logits = tl.dot(left, right.T, logits, input_precision="ieee")

        rows = row + tl.arange(0, ROWS)
        here = rows < num_rows
        stored = here & (rows >= first_stored)
        targets = tl.load(targets_ptr + rows, mask=here, other=-1).to(tl.int32) - first_column - column
        references = tl.load(references_ptr + rows, mask=here, other=0.0)
        slots = (first_column // COLUMNS + column_tile).to(tl.int64) * num_rows + rows
        starts = exponentials_ptr + rows.to(tl.int64) * exponentials_stride + column
        room = num_columns - column
        # Half of the columns after the other: the exponentials of all do not fit into registers beside their logits.
        HALF: tl.constexpr = COLUMNS // 2
        left, right = tl.split(tl.permute(tl.reshape(logits, (ROWS, 2, HALF)), (0, 2, 1)))
        sums, moments = _epilogue(left, targets, references, starts, stored, room, scale, EVEN, MOMENT, PTX)
        more_sums, more_moments = _epilogue(
            right, targets - HALF, references, starts + HALF, stored, room - HALF, scale, EVEN, MOMENT, PTX
        )
        tl.store(sums_ptr + slots, sums + more_sums, mask=here)
        if MOMENT:
            tl.store(moments_ptr + slots, moments + more_moments, mask=here)


@triton.jit(do_not_specialize=["num_rows"])
def reference_kernel(
    hidden_ptr,
    weight_ptr,
    targets_ptr,
    references_ptr,
    num_rows,
    vocabulary,
    width,
    scale,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """z_y·log2(e)/temperature of a block of rows; 0 for a target outside the vocabulary.

    The diagonal of a product, and not a sum of products: tensor cores round towards zero at every step, and only what
    was rounded alike cancels in z_v - z_y.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < num_rows
    targets = tl.load(targets_ptr + rows, mask=here, other=-1).to(tl.int64)
    known = (targets >= 0) & (targets < vocabulary)
    logits = tl.zeros((ROWS, ROWS), dtype=tl.float32)
    for k in range(0, width, WIDTH):
        columns = k + tl.arange(0, WIDTH)
        inside = (columns < width)[None, :]
        left_places = rows.to(tl.int64)[:, None] * width + columns[None, :]
        left = tl.load(hidden_ptr + left_places, mask=here[:, None] & inside, other=0.0)
        right_places = targets[:, None] * width + columns[None, :]
        right = tl.load(weight_ptr + right_places, mask=known[:, None] & inside, other=0.0)
        logits = tl.dot(left, right.T, logits, input_precision="ieee")
    own = tl.sum(tl.where(rows[:, None] == rows[None, :], logits, 0.0), 1)
    tl.store(references_ptr + rows, tl.where(known, own * scale, 0.0), mask=here)


@triton.jit
def _log1p(x):
    """log(1 + x), x ≥ 0, to float32's relative precision: near 0 by the series of 2·atanh(x / (2 + x))."""
    small = tl.minimum(x, 0.5)
    s = small / (2.0 + small)
    square = s * s
    series = 1.0 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square * (1 / 11)))))
    return tl.where(x <= 0.5, 2.0 * s * series, tl.log(1.0 + x))


@triton.jit(do_not_specialize=["num_rows"])
def combine_kernel(
    sums_ptr,
    moments_ptr,
    targets_ptr,
    logprobs_ptr,
    entropies_ptr,
    own_ptr,
    others_ptr,
    num_rows,
    num_tiles,
    vocabulary,
    temperature,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    MOMENT: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Adds the tiles' sums up. Log-probs, entropies, and the factors of W_y and of G in the unit gradient.

    A target outside the vocabulary gives 0 everywhere.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < num_rows
    sums = tl.zeros((TILES, ROWS), dtype=tl.float32)
    moments = tl.zeros((TILES, ROWS), dtype=tl.float32)
    for first in range(0, num_tiles, TILES):
        tiles = first + tl.arange(0, TILES)
        slots = tiles.to(tl.int64)[:, None] * num_rows + rows[None, :]
        inside = (tiles < num_tiles)[:, None] & here[None, :]
        sums += tl.load(sums_ptr + slots, mask=inside, other=0.0)
        if MOMENT:
            moments += tl.load(moments_ptr + slots, mask=inside, other=0.0)
    total = tl.sum(sums, 0)
    targets = tl.load(targets_ptr + rows, mask=here, other=-1)
    known = (targets >= 0) & (targets < vocabulary)
    nats = _log1p(total)
    tl.store(logprobs_ptr + rows, tl.where(known, -nats, 0.0), mask=here)
    if MOMENT:
        entropies = nats - 0.6931471805599453 * tl.sum(moments, 0) / (1.0 + total)
        tl.store(entropies_ptr + rows, tl.where(known, tl.maximum(entropies, 0.0), 0.0), mask=here)
    if UNIT:
        share = 1.0 / ((1.0 + total) * temperature)
        tl.store(own_ptr + rows, tl.where(known, total * share, 0.0), mask=here)
        tl.store(others_ptr + rows, tl.where(known, share, 0.0), mask=here)


@triton.jit
def unit_gradient_kernel(weighted_ptr, weight_ptr, targets_ptr, own_ptr, others_ptr, width, WIDTH: tl.constexpr):
    """In place: G becomes the unit gradient own·W_y - others·G, and 0 where there is none (others = 0)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    own = tl.load(own_ptr + row)
    others = tl.load(others_ptr + row)
    inside = columns < width
    # W_y is read only where the target is known; G of an unknown one may be anything.
    target = tl.where(others > 0.0, tl.load(targets_ptr + row), 0).to(tl.int64)
    embedding = tl.load(weight_ptr + target * width + columns, mask=inside, other=0.0).to(tl.float32)
    weighted = tl.load(weighted_ptr + row * width + columns, mask=inside, other=0.0)
    gradient = tl.where(others > 0.0, own * embedding - others * weighted, 0.0)
    tl.store(weighted_ptr + row * width + columns, gradient, mask=inside)
