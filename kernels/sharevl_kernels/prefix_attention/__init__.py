"""Attention over packed rows whose responses share a prompt."""

from sharevl_kernels.prefix_attention.layout import PrefixLayout, Run
from sharevl_kernels.prefix_attention.op import Backend, block_attention, choose_backend, prefix_attention

__all__ = ["Backend", "PrefixLayout", "Run", "block_attention", "choose_backend", "prefix_attention"]
