"""Gathering rows and, its transpose, adding up rows that belong to one."""

from sharevl_kernels.index_sum.op import RowIndex, gather_rows, index_sum, sort_index

__all__ = ["RowIndex", "gather_rows", "index_sum", "sort_index"]
