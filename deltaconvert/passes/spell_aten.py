"""The operators of torch.export's graphs become the functions and methods of torch that networks are written with."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from deltaconvert.ops.put import put

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]  # a function, or the name of a method; its inputs
_CHECKS = (
    *("_assert_async", "_assert_scalar", "_assert_tensor_metadata"),
    *("sym_constrain_range_for_size", "sym_constrain_range"),
)
_COPIES = ("clone", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy")


def spell_aten(frames: Sequence[Tensor]) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A pass that gives each aten operator its public name. The graph runs once on `frames`: a name that does not give
    the same values there is not taken, and the operator stays as it is.

    before:  y = aten.conv2d.default(x, w, b, [1, 1], [1, 1]);  z = aten.slice.Tensor(y, 1, 0, 8)
    after:   y = conv2d(x, w, b, [1, 1], [1, 1]);               z = y[:, 0:8]
    """

    def spell_aten(gm: fx.GraphModule) -> fx.GraphModule:
        for node in list(gm.graph.nodes):
            if not node.users and aten_name(node) in _CHECKS:
                gm.graph.erase_node(node)
            # Strides here need not be those that torch.export saw.
            elif node.target is torch.ops.aten.view.default:
                node.target = torch.ops.aten.reshape.default
        gm.graph.eliminate_dead_code()
        _take_values(gm)
        with torch.no_grad():
            _Speller(gm).run(*frames)
        return gm

    return spell_aten


def aten_name(node: fx.Node) -> str | None:
    """conv2d for torch.ops.aten.conv2d.default; None for every other call."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload) or target.namespace != "aten":
        return None
    return str(target._schema.name).partition("::")[2]


class _Speller(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        name = aten_name(n)
        if name is None:
            return value
        for target, args, kwargs in _spellings(n, name):
            given, named = fx.map_arg((args, kwargs), lambda source: self.env[source])
            try:
                other = getattr(given[0], target)(*given[1:], **named) if isinstance(target, str) else None
                other = target(*given, **named) if other is None else other
            except Exception:  # it takes other inputs than the aten operator of its name
                continue
            if _same(value, other):
                n.op = "call_method" if isinstance(target, str) else "call_function"
                n.target, n.args, n.kwargs = target, args, kwargs
                break
        return value


def _same(a: Any, b: Any) -> bool:
    ours, theirs = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and a == b
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _spellings(node: fx.Node, name: str) -> list[Call]:
    """What may be another name of the call, the likeliest first."""
    found: list[Call] = []
    special = _SPECIAL.get(name)
    if special is not None:
        with suppress(TypeError):  # an overload with other inputs
            found.append(special(*node.args, **node.kwargs))
    kwargs = dict(node.kwargs)
    args = (*node.args, kwargs.pop("self")) if "self" in kwargs else node.args
    if hasattr(torch, name):
        found.append((getattr(torch, name), args, kwargs))
    if hasattr(Tensor, name) and args and isinstance(args[0], fx.Node):
        found.append((name, args, kwargs))
    if hasattr(F, name):
        found.append((getattr(F, name), args, kwargs))
    for home, module in (("linalg_", torch.linalg), ("fft_", torch.fft), ("special_", torch.special)):
        if name.startswith(home) and hasattr(module, name.removeprefix(home)):
            found.append((getattr(module, name.removeprefix(home)), args, kwargs))
    return found


def _take_values(gm: fx.GraphModule) -> None:
    """Operators with several results of which only the first is read: the function that has no others."""
    for node in list(gm.graph.nodes):
        alone = _FIRST.get(aten_name(node) or "")
        if alone is None or any(user.args[1:] != (0,) for user in node.users):
            continue
        for user in list(node.users):
            user.replace_all_uses_with(node)
            gm.graph.erase_node(user)
        node.target, node.args, node.kwargs = alone(*node.args, **node.kwargs)
        node.meta["val"] = node.meta["val"][0]


# ---- operators whose public name takes other inputs


def _slice(x: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> Call:
    stop = None if type(end) is int and end >= 2**62 else end
    return _taken(x, dim, slice(start or None, stop, None if step == 1 else step))  # type: ignore[misc]


def _taken(x: Any, dim: int, part: Any) -> Call:
    return operator.getitem, (x, (*[slice(None)] * (dim % x.meta["val"].dim()), part)), {}


def _index(x: Any, indices: Any) -> Call:
    return operator.getitem, (x, tuple(slice(None) if i is None else i for i in indices)), {}


def _cast(x: Any, dtype: Any = None, *_other: Any, **_named: Any) -> Call:
    return "to", (x, dtype or x.meta["val"].dtype), {}


def _resize(mode: str, antialias: bool = False) -> Callable[..., Call]:
    corners = mode in ("bilinear", "bicubic")

    def spelling(x: Any, size: Any, *rest: Any) -> Call:
        aligned = bool(rest[0]) if corners else None
        scales = [each for each in rest[1:] if each is not None] if corners else list(rest)
        scale = scales[0] if scales and isinstance(scales[0], list) else None
        settings = {"mode": mode, "align_corners": aligned, "antialias": antialias}
        given = {"size": tuple(size)} if scale is None else {"scale_factor": tuple(scale)}
        return F.interpolate, (x,), {**given, **settings}

    return spelling


def _convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    out_padding: Any,
    groups: int,
) -> Call:
    """What TorchScript and torch's core operators have for convolutions of all kinds."""
    place = len(stride) - 1
    if transposed:
        function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[place]
        return function, (x, weight, bias, stride, padding, out_padding, groups, dilation), {}
    return (F.conv1d, F.conv2d, F.conv3d)[place], (x, weight, bias, stride, padding, dilation, groups), {}


_FIRST: dict[str, Callable[..., Call]] = {
    "max_pool2d_with_indices": lambda *args, **named: (torch.max_pool2d, args, named),
    "adaptive_max_pool2d": lambda *args, **named: (F.adaptive_max_pool2d, args, named),
    "_native_batch_norm_legit_no_training": lambda x, weight, bias, mean, var, momentum, eps: (
        F.batch_norm,
        (x, mean, var, weight, bias, False, momentum, eps),
        {},
    ),
    "native_layer_norm": lambda x, shape, *rest: (F.layer_norm, (x, tuple(shape), *rest), {}),
    "native_group_norm": lambda x, weight, bias, n, channels, pixels, groups, eps: (
        F.group_norm,
        (x, groups, weight, bias, eps),
        {},
    ),
}
_SPECIAL: dict[str, Callable[..., Call]] = {
    "copy": lambda x, value, *_: (put, (x, ..., value), {}),
    "slice": _slice,
    "select": lambda x, dim, index: _taken(x, dim, index),
    "index": _index,
    "to": _cast,
    "_to_copy": _cast,
    "convolution": _convolution,
    "_unsafe_view": lambda x, size: ("reshape", (x, size), {}),
    "upsample_nearest2d": _resize("nearest"),
    "_upsample_nearest_exact2d": _resize("nearest-exact"),
    "upsample_bilinear2d": _resize("bilinear"),
    "upsample_bicubic2d": _resize("bicubic"),
    "_upsample_bilinear2d_aa": _resize("bilinear", antialias=True),
    "_upsample_bicubic2d_aa": _resize("bicubic", antialias=True),
    "tensordot": lambda x, y, of_x, of_y: (torch.tensordot, (x, y), {"dims": (of_x, of_y)}),
    "meshgrid": lambda tensors, **kwargs: (torch.meshgrid, (tensors,), kwargs),
    "log_sigmoid": lambda x: (F.logsigmoid, (x,), {}),
    "elu": lambda x, alpha=1.0: (F.elu, (x, alpha), {}),
    "im2col": lambda x, *args: (F.unfold, (x, *args), {}),
    "col2im": lambda x, *args: (F.fold, (x, *args), {}),
    "__and__": lambda x, y: (operator.and_, (x, y), {}),
    "__or__": lambda x, y: (operator.or_, (x, y), {}),
    "__xor__": lambda x, y: (operator.xor, (x, y), {}),
    "zero": lambda x: (torch.zeros_like, (x,), {}),
    "numpy_T": lambda x: ("t", (x,), {}),
    "mT": lambda x: ("transpose", (x, -2, -1), {}),
    "broadcast_tensors": lambda tensors: (torch.broadcast_tensors, tuple(tensors), {}),
    "sym_size": lambda x, dim: ("size", (x, dim), {}),
    **{name: lambda x, **_: ("clone", (x,), {}) for name in _COPIES},
}
