"""A device that is not the processor, made of the processor: what a GPU would refuse, it refuses.

Its tensors say that they are on "elsewhere:0"; their values are the processor's, and lie within.
Operators run on the values, and raise where tensors of both devices meet (numbers, of no axes,
may), as CUDA's do; NumPy cannot read them. Within `Elsewhere`, tensors can be brought there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


class Backend(_DummyBackendModule):
    """What torch.elsewhere is: nothing that looks for an accelerator is to find it."""

    def is_available(self):
        return False


_setup_privateuseone_for_python_backend("elsewhere", Backend())
DEVICE = torch.device("elsewhere:0")
CROSSING = {"_to_copy", "copy_"}
READING = {"_local_scalar_dense", "equal", "is_nonzero"}


class There(Tensor):
    """A tensor on the other device: ``inner`` holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )

    def __init__(self, inner, requires_grad=False):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return run(operator, args, kwargs or {})

    def __array__(self, dtype=None):
        raise TypeError("NumPy cannot read what is elsewhere: use .cpu() first")

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = There(self.inner.clone(), self.requires_grad)
            if isinstance(self, nn.Parameter):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    # what does not reach an operator, of the values themselves

    def numpy(self, force=False):
        return self.inner.numpy(force=True) if force else self.__array__()

    def tolist(self):
        return self.inner.tolist()

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    @property
    def data(self):
        return There(self.inner.detach())

    @data.setter
    def data(self, value):
        Tensor.data.__set__(self, value)
        self.inner = value.inner


class Elsewhere(TorchDispatchMode):
    """Within, the device is there."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return run(operator, args, kwargs or {})


def run(operator, args, kwargs):
    """An operator on the values of its tensors, which all are on one device."""
    name = operator._schema.name.removeprefix("aten::")
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    there = any(isinstance(value, There) for value in tensors)
    here = any(not isinstance(value, There) and value.dim() for value in tensors)
    if there and here and name not in CROSSING:
        raise RuntimeError(f"expected all tensors on one device, but {name} got some of two")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif name == "copy_":
        there = isinstance(args[0], There)
    known = {id(value.inner): value for value in tensors if isinstance(value, There)}
    found = operator(*tree_map(_values, args), **tree_map(_values, kwargs))
    if not there or name in READING:
        return found
    # what an operator wrote in place is the tensor that it was given
    return tree_map(
        lambda value: known[id(value)] if id(value) in known else _wrapped(value), found
    )


def _values(value):
    return value.inner if isinstance(value, There) else value


def _wrapped(value):
    return There(value) if isinstance(value, Tensor) else value
