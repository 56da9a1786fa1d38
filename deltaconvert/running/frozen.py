"""What a converted network refuses: its plans are for its weights, its types and its device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from deltaconvert.errors import DeltaConvertError

M = TypeVar("M", bound="Frozen")
KEEPS_NO_STATE = "cannot keep a network's state: use deltaconvert.export_pt2 or export_onnx"


class Frozen(nn.Module):
    """A module that cannot be changed: what would change it raises DeltaConvertError, which says what to do instead."""

    def _homes(self) -> Iterable[tuple[torch.dtype, torch.device]]:
        """The types of its weights and inputs, and where they are."""
        raise NotImplementedError

    def _apply(self: M, fn: Any, recurse: bool = True) -> M:
        """torch calls this for `to`, `half`, `cuda` and the like: nothing changes, or it is an error."""
        for dtype, device in set(self._homes()):
            try:
                after = fn(torch.empty(0, dtype=dtype, device=device))
                stays = (after.dtype, after.device) == (dtype, device)
            except Exception:  # torch cannot bring it there
                stays = False
            if not stays:
                raise DeltaConvertError(
                    f"a converted network stays on {device}, in its types: move or cast the dense one and convert it "
                    "again, or say where a saved one goes: deltaconvert.load(path, device=...)"
                )
        return self

    def train(self: M, mode: bool = True) -> M:
        if mode:
            raise DeltaConvertError(
                "a converted network cannot be trained: train the dense one and convert it again"
            )
        return super().train(False)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise DeltaConvertError(
            "a converted network takes no other weights: load them into the dense one and convert it again"
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """torch calls this for load_state_dict of a network around it: the weights have to be the ones it has."""
        for name, own in self.state_dict().items():
            other = state_dict.get(prefix + name)
            if other is not None and not torch.equal(own, other.to(own)):
                self.load_state_dict()
        super()._load_from_state_dict(state_dict, prefix, *others)

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script asks every module for."""
        raise DeltaConvertError(f"torch.jit.script {KEEPS_NO_STATE}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise DeltaConvertError(
            "a converted network cannot be pickled: save(path) writes it, deltaconvert.load(path) reads it"
        )
