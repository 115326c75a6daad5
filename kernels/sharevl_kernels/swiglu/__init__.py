"""The gated activation of an MLP, and its backward pass from what it read."""

from sharevl_kernels.swiglu.op import swiglu, swiglu_backward

__all__ = ["swiglu", "swiglu_backward"]
