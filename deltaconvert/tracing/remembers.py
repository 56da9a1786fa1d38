"""Networks that remember: what a call writes to them changes the answer of a later call.

Examples are a frame average, a hidden state, a counter of frames. A graph computes from its inputs alone, so such a
network would equal its graph on the first frame, and on others until something of it shows.

What one frame writes decides nothing by itself: networks also keep grids of a size, count their calls, and hand out
maps in attributes. So a later call gets stand-ins (stale.py) for what calls before it wrote. If it asks for one, or its
answer is another, the network remembers.

What the first call alone wrote may be read: a grid, a flag. Then the network after that call says what its graph is
good for: capture.py traces it as well, and it is called with frames of other sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deltaconvert.signature import tensors_of
from deltaconvert.tracing.keeps import Itself, Memory, Slot, kept_by
from deltaconvert.tracing.stale import Read, Stale, StaleTensor, stale
from deltaconvert.tracing.tracer import one_more
from deltaconvert.tracing.twin import twin

ROUNDING = 1e-6  # of the largest value of an output
Slots = Mapping[str, Slot]


class Watched:
    """A copy of a network, and what its last call wrote."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.written: list[str] = []  # names of slots
        self.kept = self._start = kept_by(network)

    def __call__(self, call: Any, unused: nn.Module) -> Any:
        """The answer to `call`. unused: another copy as it is before it, which shows what changes by ways that torch
        does not count, such as x.data."""
        before = self.kept
        answer = _call(self.network, call)
        self.kept, values = kept_by(self.network), kept_by(unused)
        gone = [name for name in before if name not in self.kept]
        self.written = gone + [name for name in self.kept if _is_written(name, before, self.kept, values)]
        return answer

    def put_back(self, network: nn.Module) -> list[str]:
        """What calls wrote that `network` would see too, since it lies outside of modules: as it was again."""
        if not self.written:
            return []
        ours, shared = kept_by(network), []
        for name, slot in self._start.items():
            is_shared = name in ours and ours[name].holder is slot.holder is not None
            if is_shared and ours[name].mark != slot.mark:
                slot.put(slot.value)
                shared.append(name)
        return shared


def _is_written(name: str, before: Slots, after: Slots, values: Slots) -> bool:
    """values: those of `before`, which hold what is in memory now."""
    if name not in before or before[name].mark != after[name].mark:
        return True
    return name in values and not _same(values[name].value, after[name].value)


@dataclass
class Memories:
    """read: what calls write and later ones read. later: the network after its first call, where that wrote what stays
    as it is and may be read: the grid of a size."""

    read: list[str] = field(default_factory=list)
    later: nn.Module | None = None


def remembers(network: nn.Module, used: Watched, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Memories:
    """What calls write and later ones read; nothing for most networks.

    used: a copy of `network` after the call on (args, kwargs). Where that wrote anything, it answers another frame, and
    once more with stand-ins for what one of the two calls wrote. What the first wrote alone may be read, if it is the
    same for both frames: the grid of a size.
    """
    first = used.written
    if not first:
        return Memories()
    for change in (_other, _mirrored, lambda leaf: leaf):
        call = pytree.tree_map_only(Tensor, change, (args, kwargs))
        kept, fresh = twin(used.network), twin(network)
        try:
            expected, answer = _call(fresh, call), used(call, kept)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # it takes no such frame
            continue
        if not _equal(expected, answer):
            return Memories(first)
        ones, others = kept_by(kept), kept_by(fresh)
        of_the_frame = (name for name in first if _differs(ones.get(name), others.get(name)))
        doubted = list(dict.fromkeys((*used.written, *of_the_frame)))
        # What is new in a list or dict is seen by what that was before.
        doubted = [name for name in doubted if name in ones or not name.endswith("]")]
        stays = any(name not in doubted for name in first)
        stand_ins = {name: _stand_in(ones.get(name), used.kept.get(name)) for name in doubted}
        if not doubted or not _reads(kept, stand_ins, call, answer):
            return Memories(later=kept if stays else None)
        read = [name for name in doubted if _reads(kept, {name: stand_ins[name]}, call, answer)]
        return Memories(read or doubted)
    return Memories(first)


def holds_for_other_sizes(network: nn.Module, later: nn.Module, call: Any) -> bool:
    """Whether frames of other sizes, and more of them, get the answer of `network` from it as `later`, and those of
    `call` again after them: what it keeps of a size is made anew for another."""
    size = _answered(network, call, _halved) or _answered(network, call, _doubled)
    if size is None:  # there is none to ask it with
        return False
    asked = [each for each in (size, _answered(network, call, one_more)) if each is not None]
    again = (call, _call(twin(network), call))
    return all(_gives(twin(later), (other, again)) for other in asked)


def _answered(network: nn.Module, call: Any, change: Any) -> tuple[Any, Any] | None:
    """The call with changed frames and its answer; None where the network takes no such frame, or there is no memory
    for it."""
    other = pytree.tree_map_only(Tensor, change, call)
    try:
        return other, _call(twin(network), other)
    except Exception:
        return None


def _gives(used: nn.Module, calls: Sequence[tuple[Any, Any]]) -> bool:
    """These answers to these calls, in turn."""
    try:
        return all(_equal(answer, _call(used, call)) for call, answer in calls)
    except Exception:
        return False


def _stand_in(kept: Slot | None, later: Slot | None) -> Any:
    """For what is kept; of its form, if the call after it left the same form there, or a longer list."""
    values = [slot.value if slot is not None else None for slot in (kept, later)]
    one, other = ([x.shape for x in tensors_of(value)] for value in values)
    return stale(values[0]) if one == other or type(values[0]) is list else Stale()


def _reads(network: nn.Module, stand_ins: Mapping[str, Any], call: Any, expected: Any) -> bool:
    """Whether the answer of a copy depends on what is kept under these names."""
    network = twin(network)
    slots = kept_by(network)
    if not all(name in slots and slots[name].holder is not None for name in stand_ins):
        return True  # there from the second call on, or in a program of TorchScript
    try:
        for name, value in stand_ins.items():
            slots[name].put(value)
        answer = _call(network, call)
    except torch.OutOfMemoryError:
        raise
    except (Exception, Read):
        return True
    finally:
        for name in stand_ins:  # a copy of the network sees the same globals
            slots[name].put(slots[name].value)
    return any(isinstance(leaf, StaleTensor) for leaf in tensors_of(answer)) or not _equal(expected, answer)


def _call(network: nn.Module, call: Any) -> Any:
    args, kwargs = copy.deepcopy(call)
    return network(*args, **kwargs)


def _mirrored(frame: Tensor) -> Tensor:
    return frame.flip(-1) if frame.dim() else frame


def _other(frame: Tensor) -> Tensor:
    """Mirrored, and darker on one side."""
    if not frame.is_floating_point() or not frame.dim():
        return _mirrored(frame)
    return frame.flip(-1) * torch.linspace(
        0.25, 0.75, frame.shape[-1], dtype=frame.dtype, device=frame.device
    )


def _halved(frame: Tensor) -> Tensor:
    return frame[..., : frame.shape[2] // 2, : frame.shape[3] // 2] if frame.dim() == 4 else frame


def _doubled(frame: Tensor) -> Tensor:
    return frame.repeat(1, 1, 2, 2) if frame.dim() == 4 else frame


def _differs(a: Slot | None, b: Slot | None) -> bool:
    return a is None or b is None or not _alike(a.mark, b.mark)


def _alike(a: Any, b: Any) -> bool:
    """Marks of the same slot in two copies of a network."""
    if isinstance(a, Memory) and isinstance(b, Memory):
        return _same(a.value, b.value)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return isinstance(a, Itself) or bool(a == b)  # which is another one in each copy


def _same(a: Any, b: Any) -> bool:
    """Not two tensors of other numbers."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    try:
        return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
    except Exception:  # packed weights
        return True


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
