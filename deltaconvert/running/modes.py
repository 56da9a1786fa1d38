"""torch.autocast around a converted network: its types are those that it was planned with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def is_casting(device: torch.device) -> bool:
    """The caller is in torch.autocast, which computes in other types than the network's."""
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


def own_types(device: torch.device) -> AbstractContextManager[None]:
    """Inside, operators compute in the types of what they are given."""
    return torch.autocast(device.type, enabled=False) if is_casting(device) else nullcontext()
