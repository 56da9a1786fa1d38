"""A frame of a DeltaModel as one operator of torch, which torch.compile takes into its graph as it is."""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from deltaconvert.errors import DeltaConvertError
from deltaconvert.layout import apart_from

if TYPE_CHECKING:
    from deltaconvert.model import DeltaModel

# An operator of torch takes tensors and numbers only: a compiled graph knows its model by a number.
_models: WeakValueDictionary[int, DeltaModel] = WeakValueDictionary()
_numbers = itertools.count()
# A model's CUDA graph cannot be captured into another one. Older versions of torch have no tag that says so.
_OPTIONS: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
)


def enrol(model: DeltaModel) -> int:
    """The number that the operator knows the model by, while it lives."""
    number = next(_numbers)
    _models[number] = model
    return number


@cache
def frame_operator(outputs: int) -> Any:
    """(order, the model's number, flat frames) -> the flat outputs of its next frame.

    One operator for each number of outputs, because torch cannot compile one that writes and returns a list. It
    declares that it writes to `order`, which it does not: that keeps torch from dropping, merging or reordering frames.
    """
    results = ", ".join(["Tensor"] * outputs)
    operator = torch.library.custom_op(
        f"deltaconvert::frame_{outputs}",
        _frame,
        mutates_args=("order",),
        schema=f"(Tensor(a!) order, int model, Tensor[] frames) -> ({results})",
        **_OPTIONS,
    )
    operator.register_fake(_forms)
    return getattr(torch.ops.deltaconvert, f"frame_{outputs}").default


def _frame(order: Tensor, model: int, frames: list[Tensor]) -> Any:
    if model not in _models:
        raise DeltaConvertError(
            "a compiled graph calls a converted network that is no longer there, or elsewhere: compile it again"
        )
    return _results([_own(output, frames) for output in _models[model].frame(frames)])


def _forms(order: Tensor, model: int, frames: list[Tensor]) -> Any:
    sizes = [tuple(int(side) for side in each.shape) for each in frames]
    with unset_fake_temporarily():
        forms = _models[model].output_forms(sizes)
    return _results([torch.empty(shape, dtype=dtype, device=order.device) for shape, dtype in forms])


def _results(tensors: list[Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _own(output: Tensor, frames: list[Tensor]) -> Tensor:
    """In memory of its own, laid out as `_forms` says."""
    return apart_from(output.contiguous(), frames)
