"""What a CUDA graph cannot hold: an island that waits for the device or works elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = ("_linalg_check_errors",)
_MASKS = (torch.bool, torch.uint8)
_COPIES = ("_to_copy", "copy_")


def run_and_judge(step: Any, frame: Any, device: torch.device) -> str | None:
    """Run a step of a first frame. None if a graph can hold it, else the reason."""
    if step.island is None or step.island.edge is not None:
        step(frame)
        return None
    if not step.island.pure:
        step(frame)
        return "its Python code runs in every frame"
    with _Watch(device) as watch:
        step(frame)
    return watch.reason


class _Watch(TorchDispatchMode):
    """Looks at every call of torch in this thread. torch's own warning about waits applies to all threads at once."""

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device
        self.reason: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would hide the method below from its compiler, for which it loads the compiler: 3 s of a warm start.
        Islands that call torch alone compile nothing."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.reason is None:
            self.reason = _why_not(func, (args, kwargs), result, self._device)
        return result


def _why_not(func: Any, given: Any, result: Any, device: torch.device) -> str | None:
    name = func.overloadpacket.__name__
    tensors = [x for x in pytree.tree_leaves((given, result)) if isinstance(x, Tensor)]
    if torch.Tag.data_dependent_output in func.tags or name in _WAITING:
        return f"{name} waits for the device"
    if "index" in name:  # with integers no size depends on values, whatever the tag says
        by_values = any(isinstance(x, Tensor) and x.dtype in _MASKS for x in pytree.tree_leaves(given[0][1:]))
    else:
        by_values = torch.Tag.dynamic_output_shape in func.tags
    if by_values:
        return f"the size of what {name} makes depends on values"
    # A single value on the host is a constant for the device, unless it is copied there.
    elsewhere = [x.device for x in tensors if x.device != device and (x.dim() or name in _COPIES)]
    return f"{name} has to do with {elsewhere[0]}" if elsewhere else None
