"""One frame through the dense graph: shapes, work and scale of every value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from deltaconvert.nodes import is_call, is_foreign_function, is_random, operator_of
from deltaconvert.ops.base import Operator, Shape, is_known, mean_magnitude
from deltaconvert.passes.loose import Loose
from deltaconvert.tracing.twin import twin

_PRODUCTS = ("linear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm")
_WORKERS = (
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d bilinear einsum tensordot chain_matmul "
    "scaled_dot_product_attention multi_head_attention_forward wrap_with_autocast "
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
).split()

# Their result takes the shape and the type of their input, and no values.
LIKE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor")
# Attributes of a tensor that follow from its kind, not from its values.
TYPES = ("dtype", "device", "is_nested", "is_sparse", "is_quantized", "is_cuda", "layout")


def propagate(frames: Sequence[Tensor]) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A pass that runs the graph on `frames` and writes what it sees to each node's meta:

    shape, dtype, device of tensors; macs, the multiply-accumulates of the call; scale, the mean magnitude of a
    floating-point value; constant, the value itself where it follows from sizes and weights alone. A value whose size
    follows from values has is_loose in place of a shape.

    before:  y = conv(x)
    after:   the same, with shape=(1, 64, 56, 56), macs=...
    """

    def propagate(gm: fx.GraphModule) -> fx.GraphModule:
        with torch.no_grad():
            _Observer(gm).run(*frames)
        return gm

    return propagate


def _attention_flops(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    """Of the scores and of their product with the values."""
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


# torch counts none here.
_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


class _Observer(Loose):
    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A network's own module may keep something from call to call: a copy of it runs."""
        module = self.fetch_attr(target)
        own = not isinstance(module, Operator) and not is_known(module)
        return (twin(module) if own else module)(*args, **kwargs)

    def run_node(self, node: fx.Node) -> Any:
        if _hides_work(node):
            value, node.meta["macs"] = self._counted(node)
        else:
            value = super().run_node(node)
            node.meta["macs"] = self._macs(node, value)
        constant = _is_constant(node)
        node.meta["is_loose"] = self.is_loose(node, value, constant)
        node.meta["is_constant"] = constant and not node.meta["is_loose"]
        if isinstance(value, Tensor):
            node.meta.update(dtype=value.dtype, device=value.device)
            if not node.meta["is_loose"]:
                node.meta["shape"] = tuple(value.shape)
            if value.is_floating_point() and value.numel() and value.layout is torch.strided:
                operator = operator_of(node)
                node.meta["scale"] = (operator.magnitude if operator else mean_magnitude)(value)
        if node.meta["is_constant"] and node.op != "get_attr":
            node.meta["constant"] = value
        return value

    def _macs(self, node: fx.Node, value: Any) -> int:
        """Multiply-accumulates on the example, with loose sizes as they are there."""
        operator = operator_of(node)
        if operator is None:
            return self._product_macs(node, value)
        values = (*(self.env[source] for source in node.args), value)
        if not all(isinstance(x, Tensor) for x in values):  # x.dtype != y.dtype, x * x.max().item()
            return 0
        *shapes, out_shape = (tuple(x.shape) for x in values)
        return operator.macs(shapes, out_shape)

    def _product_macs(self, node: fx.Node, value: Any) -> int:
        """Those of a matrix product, in which each value of the result sums over the input's last dimension."""
        if _name(node) not in _PRODUCTS or not isinstance(value, Tensor):
            return 0
        with_sum = _name(node) in ("addmm", "baddbmm") and len(node.args) > 1
        source = self.env.get(node.args[1] if with_sum else node.all_input_nodes[0])
        return value.numel() * source.shape[-1] if isinstance(source, Tensor) else 0

    def _counted(self, node: fx.Node) -> tuple[Any, int]:
        """The node's result, and the multiply-accumulates that torch counted."""
        # Imported here because it imports torch's compiler, which takes seconds.
        from torch.utils.flop_counter import FlopCounterMode

        try:
            with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
                return super().run_node(node), counter.get_total_flops() // 2
        except RuntimeError:  # it computes a gradient, where the counter fails
            return super().run_node(node), 0


def _hides_work(node: fx.Node) -> bool:
    """Its multiply-accumulates do not follow from the shapes of its input and its output."""
    if node.op == "call_module":
        return operator_of(node) is None
    if node.op not in ("call_function", "call_method"):
        return False
    return _name(node) in _WORKERS or is_foreign_function(node.target)


def _name(node: fx.Node) -> str:
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))


def _is_constant(node: fx.Node) -> bool:
    """The value follows from sizes and weights: the same in every frame of this size."""
    if node.op == "get_attr":
        return True
    if not is_call(node):
        return False
    name = _name(node)
    if node.op == "call_method" and name in ("size", "dim", "numel", "ndimension"):
        return True
    if node.target is getattr and node.args[1] in (*TYPES, "shape", "ndim"):
        return True
    if node.target is len:  # of a tuple of tensors
        return True
    if node.op == "call_module" and operator_of(node) is None:
        return False
    read = node.all_input_nodes
    if node.op == "call_method" and name in ("to", "type_as"):  # weight.to(x) reads the type of x alone
        read = read[:1]
    if name in LIKE:
        read = read[1:]
    return all(source.meta.get("is_constant") for source in read) and not is_random(name)
