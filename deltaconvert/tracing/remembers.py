"""Networks that remember: what a call writes to them changes the answer of the next call.

Examples are a frame average, a hidden state, a counter of frames. A graph computes from its inputs alone, so such a
network would equal its graph on the first frame and on no other.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deltaconvert.tracing.twin import twin

ROUNDING = 1e-6  # of the largest value of an output
_OWN = frozenset(vars(nn.Module()))


def remembers(
    network: nn.Module, used: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str]:
    """The attributes that a call writes, where they change what the next call gives; none for most networks.

    used: a copy of `network` after the call on (args, kwargs). Where the call wrote anything, both answer another
    frame, the mirrored one. Networks that only cache sizes or grids, or count calls, give the same answer."""
    written = _written(network, used)
    if not written:
        return []
    for change in (_mirrored, lambda leaf: leaf):
        try:
            call = pytree.tree_map_only(Tensor, change, (args, kwargs))
            fresh, again = (_call(each, call) for each in (twin(network), used))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # it takes no such frame
            continue
        return [] if _equal(fresh, again) else written
    return []


def _call(network: nn.Module, call: Any) -> Any:
    args, kwargs = copy.deepcopy(call)
    return network(*args, **kwargs)


def _mirrored(frame: Tensor) -> Tensor:
    return frame.flip(-1) if frame.is_floating_point() and frame.dim() else frame


def _written(network: nn.Module, used: nn.Module) -> list[str]:
    before = dict(network.named_modules())
    found = []
    for path, module in used.named_modules():
        old = _attributes(before[path]) if path in before else {}
        for name, value in _attributes(module).items():
            if name not in old or not _same(old[name], value):
                found.append(f"{path}.{name}" if path else name)
    return found


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {**module._buffers, **{name: value for name, value in vars(module).items() if name not in _OWN}}


def _same(a: Any, b: Any) -> bool:
    """Equal in value. What cannot be compared counts as written; the next two calls decide."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if callable(a) and not isinstance(a, nn.Module):
        return True
    try:
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
    except Exception:
        return False


def _equal(a: Any, b: Any) -> bool:
    """Two outputs, to rounding."""
    ours, spec = pytree.tree_flatten(a)
    theirs, other = pytree.tree_flatten(b)
    return spec == other and all(map(_close, ours, theirs))


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b)
    if a.shape != b.shape:
        return False
    bound = ROUNDING * float(b.detach().abs().nan_to_num().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=bound, equal_nan=True)
