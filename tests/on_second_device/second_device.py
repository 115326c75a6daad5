"""A second device made of CPU memory, as strict as a GPU about which tensor lies where.

Importing this registers it with torch as `second`, for good: do so only in a process of its own (see
`tests/test_second_device.py`). A tensor on it holds one of the CPU. Operations compute there and give tensors of the
device; like CUDA's, they refuse operands on the CPU, but for

- numbers (tensors without axes) in pointwise operations,
- indices of an indexed tensor (`x[index]`), which are copied over,
- `copy_` and `to`, which are for that.

So a tensor that was forgotten on the CPU is an error here too, and results are those of the CPU, up to the rounding of
attention, which torch takes apart here. What a GPU does differently (kernels, streams, pinned memory, its own random
numbers) is not to be found with this.
"""

from functools import cache, partial

import torch
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
DEVICE = torch.device("privateuseone", 0)  # under the name that it has until it is registered
CPU = torch.device("cpu")
COPY = torch.ops.aten.copy_.default
WITHOUT_CLASS = """
    arange arange.start arange.start_step empty.memory_format empty_strided eye eye.m full linspace logspace ones
    rand randint randint.low randn randperm scalar_tensor tril_indices triu_indices zeros copy_ _local_scalar_dense
"""
"""What makes tensors of none, and what torch's own C++ asks past the class below (of indices and nested lists)."""
WITH_NUMBERS = {"fill", "fill_", "floor_divide", "floor_divide_", "rsub", "masked_fill", "masked_fill_", "index_fill"}
"""Operations that take a number of the CPU like pointwise ones, and have no tag to say so; `_foreach_…` do too."""
HALF = "linear matmul mm bmm addmm baddbmm addbmm conv1d conv2d conv3d scaled_dot_product_attention"
FULL = """
    layer_norm rms_norm softmax.int log_softmax.int cumsum sum sum.dim_IntList prod exp log rsqrt pow.Tensor_Scalar
    norm.ScalarOpt_dim
"""
"""What autocast computes in half and in full precision on a GPU (the part of its lists that these models meet)."""


class SecondTensor(torch.Tensor):
    """A tensor on the second device; its values are `inner`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=DEVICE, **layout)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return compute(op, *args, **(kwargs or {}))

    def numpy(self, **_):
        raise TypeError(f"can't convert a tensor on {self.device} to numpy; copy it to the CPU first")

    def tolist(self):
        return self.detach().cpu().tolist()

    def __reduce_ex__(self, _):  # what `torch.load` trusts, and as for devices that lend torch no memory
        rebuilt = self.detach().cpu(), self.dtype, str(self.device), self.requires_grad
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, rebuilt

    def untyped_storage(self):  # by which safetensors tells tensors that share memory
        return self.inner.untyped_storage()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def __repr__(self, **_):
        return f"SecondTensor({self.inner})"


def compute(op, /, *args, **kwargs):
    """What an operation gives for tensors of the device; raises RuntimeError where they are mixed with the CPU's."""
    takes_numbers, indexes, writes = traits(op)
    if indexes:
        args = (args[0], each(moved, args[1]), *args[2:])
    known = {}

    def enter(value):
        if type(value) is SecondTensor:
            known[id(value.inner)] = value
            return value.inner
        if isinstance(value, torch.Tensor):
            if not (takes_numbers if value.ndim == 0 else op is COPY):
                raise RuntimeError(f"{op}: a tensor on {value.device}, {tuple(value.shape)}, among those on {DEVICE}")
            known[id(value)] = value
        if isinstance(value, torch.Generator):
            raise RuntimeError(f"{op}: a generator on {value.device} for a tensor on {DEVICE}")
        return CPU if isinstance(value, torch.device) and value.type == NAME else value

    def leave(value):
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in known:  # written in place
            return known[id(value)]
        return SecondTensor(value) if here else value

    here = (kwargs.get("device") or DEVICE).type == NAME
    if writes and op is not COPY and type(args[0]) is torch.Tensor:
        raise RuntimeError(f"{op}: what is computed on {DEVICE} cannot be written to {args[0].device}")
    result = each(leave, op(*each(enter, args), **{name: each(enter, value) for name, value in kwargs.items()}))
    if writes and any(type(value) is SecondTensor and value.shape != value.inner.shape for value in known.values()):
        raise NotImplementedError(f"{op} changes the shape of a tensor in place")
    return result


def moved(index):
    return SecondTensor(index) if type(index) is torch.Tensor else index


def each(change, value):
    """A value, or all in nested lists and tuples, changed. (torch's own walk takes longer than the operations.)"""
    kind = type(value)
    return kind([each(change, part) for part in value]) if kind is list or kind is tuple else change(value)


@cache
def traits(op):
    """Whether an operation takes numbers of the CPU, whether it indexes, and whether it writes its first argument."""
    name = op.overloadpacket.__name__
    indexes = name in ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")
    tagged = torch.Tag.pointwise in op.tags or name in WITH_NUMBERS or name.startswith("_foreach")
    first = op._schema.arguments[0].alias_info if op._schema.arguments else None
    return tagged or indexes or op is COPY, indexes, first is not None and first.is_write


def cast(op, wanted, /, *args, **kwargs):
    """An operation under autocast, in the precision `wanted`; None is that which autocast was asked for."""
    wanted = wanted or torch.get_autocast_dtype(NAME)

    def lower(value):
        floating = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(wanted) if floating and value.device.type == NAME else value

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return op(*each(lower, args), **{name: each(lower, value) for name, value in kwargs.items()})


class Backend(_DummyBackendModule):
    """`torch.second`: what torch asks a device's module for."""

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.bfloat16, torch.float16]


def overload(name):
    packet, _, which = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), which or "default")


def register():
    """Makes `second` a device of this process; returns what must be kept alive."""
    _setup_privateuseone_for_python_backend(NAME, Backend())
    others, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in WITHOUT_CLASS.split():
        aten.impl(name, partial(compute, overload(name)), "PrivateUse1")
    for names, dtype in ((HALF, None), (FULL, torch.float32)):
        for name in names.split():
            aten.impl(name, partial(cast, overload(name), dtype), "AutocastPrivateUse1")
    return others, aten


LIBRARIES = register()
