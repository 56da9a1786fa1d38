"""ONNX graphs under construction: nodes, constants, branches and functions of one scope each.

Nodes are written as calls: `g.Add(a, b)`, `g.MaxPool(x, kernel_shape=[3, 3])`. Values are names; numbers and tensors
become constants where they stand.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

OPSET = 20
DOMAIN = "deltaconvert"
EVERY = "everything_changed"  # the input: streams whose frame is computed in full
TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.bool: TensorProto.BOOL,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
}
OPSETS = (helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1))


class Scope:
    """The graph, a branch of an If, or the body of a function.

    axis: where the channels of maps are: 1 in N C H W; -1 where pixels are rows, as in the bodies of sparse operators.
    """

    axis = 1
    shape: tuple[int, ...] = ()  # N C H W of the map that is read, for operators whose constants depend on it

    def __init__(self, names: Iterator[int] | None = None):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._names = names or itertools.count()
        self._known: dict[tuple[Any, ...], str] = {}

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if not op[0].isupper():
            raise AttributeError(op)
        return partial(self.call, op)

    def call(
        self,
        op: str,
        *inputs: Any,
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """A node; the name of its output, or a list of them."""
        taken = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        named = [self.fresh(op) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        attributes = {name: value for name, value in attributes.items() if value is not None}
        # onnxruntime 1.20 makes two nodes of one name out of some that have none.
        self.nodes.append(helper.make_node(op, taken, named, name=named[0], domain=domain, **attributes))
        return named[0] if len(named) == 1 else named

    def fresh(self, hint: str) -> str:
        return f"{hint.lower()}_{next(self._names)}"

    def constant(self, value: Any) -> str:
        """A number, a list of integers or a tensor; equal ones are one."""
        array = as_array(value)
        key = (array.dtype.str, array.shape, hashlib.sha1(array).digest())
        if key not in self._known:
            self._known[key] = self.keep(array, self.fresh("constant"))
        return self._known[key]

    def keep(self, array: np.ndarray[Any, Any], name: str) -> str:
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, tensor: Tensor) -> str:
        """A tensor of the network. A function takes it as an input."""
        return self.constant(tensor)

    def choose(
        self, condition: str, then: Branch, otherwise: Branch, outputs: int | Sequence[str] = 1
    ) -> Any:
        """If; both branches have the same results."""
        return self.call(
            "If",
            condition,
            outputs=outputs,
            then_branch=then.proto("then"),
            else_branch=otherwise.proto("else"),
        )

    def branch(self) -> Branch:
        return Branch(self)

    def per_channel(self, values: Tensor) -> str:
        """A weight (C) as it broadcasts to maps here."""
        return self.weight(values.view(-1, 1, 1) if self.axis == 1 else values)


class Branch(Scope):
    """Sees the values of the scope it is in."""

    def __init__(self, outer: Scope):
        super().__init__(outer._names)
        self.axis, self.shape, self._outer = outer.axis, outer.shape, outer
        self.in_function: bool = isinstance(outer, Body) or (isinstance(outer, Branch) and outer.in_function)
        self.results: list[onnx.ValueInfoProto] = []

    def result(
        self, value: str, dtype: torch.dtype | None = None, shape: Sequence[Any] | None = None
    ) -> None:
        info = onnx.ValueInfoProto(name=value)
        if dtype is not None:
            info = helper.make_tensor_value_info(value, TYPES[dtype], shape)
        self.results.append(info)

    def weight(self, tensor: Tensor) -> str:
        """In a function one of its inputs. Else the branch's own: onnxruntime prepares only those for its kernels."""
        return self._outer.weight(tensor) if self.in_function else self.constant(tensor)

    def proto(self, name: str) -> onnx.GraphProto:
        return helper.make_graph(self.nodes, name, [], self.results, list(self.constants.values()))


class Body(Scope):
    """A function. Constants are nodes, weights are inputs that come after `inputs`."""

    def __init__(self, inputs: Sequence[str]):
        super().__init__()
        self.inputs = list(inputs)
        self.weights: list[Tensor] = []

    def keep(self, array: np.ndarray[Any, Any], name: str) -> str:
        self.nodes.append(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))
        )
        return name

    def weight(self, tensor: Tensor) -> str:
        self.weights.append(tensor)
        self.inputs.append(f"weight_{len(self.weights) - 1}")
        return self.inputs[-1]


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """Numbers as float32 or int64, tensors as they are."""
    if isinstance(value, Tensor):
        return np.ascontiguousarray(value.detach().cpu().numpy())
    if isinstance(value, bool | np.ndarray):
        return np.asarray(value)
    array = np.asarray(value)
    return array.astype(np.int64 if array.dtype.kind in "iu" or not array.size else np.float32)
