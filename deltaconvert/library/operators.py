"""The delta operators, registered: on the CPU `sparse`, elsewhere `whole`, and what each returns for fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.reference import Amount, differs, fill_unseen
from deltaconvert.library.step import Call, sparse, whole
from deltaconvert.ops.base import operator_types

NAMESPACE = "deltaconvert"
STEP = (
    "(Tensor[] maps, Tensor[] masks, Tensor(a!) stored, Tensor[] weights, str operator, str path, "
    "float? threshold, Tensor? shares) -> Tensor"
)
SPARSIFY = "(Tensor frame, Tensor(a!) stored, float threshold, Tensor? shares) -> Tensor"
FORGET = "(Tensor(a!)[] stored, Tensor everything_changed) -> ()"


def register() -> None:
    """All that are not registered yet."""
    _register("forget", FORGET, _forget, None, lambda stored, everything_changed: None)
    _register("sparsify", SPARSIFY, _sparsify, None, lambda frame, stored, *rest: _like_mask(stored))
    for name in operator_types():
        if name != "Fused":  # goes by its head's name
            _register(
                name, STEP, _step(whole), _step(sparse), lambda maps, masks, stored, *rest: _like_mask(stored)
            )


def _register(
    name: str,
    schema: str,
    anywhere: Callable[..., Any],
    on_cpu: Callable[..., Any] | None,
    fake: Callable[..., Any],
) -> None:
    if hasattr(getattr(torch.ops, NAMESPACE), name):
        return
    operator = torch.library.custom_op(
        f"{NAMESPACE}::{name}", anywhere, mutates_args=("stored",), schema=schema
    )
    if on_cpu is not None:
        operator.register_kernel("cpu", on_cpu)
    operator.register_fake(fake)


def _step(way: Callable[[Call, list[Tensor], Amount | None], Tensor]) -> Callable[..., Tensor]:
    def step(
        maps: list[Tensor],
        masks: list[Tensor],
        stored: Tensor,
        weights: list[Tensor],
        operator: str,
        path: str,
        threshold: float | None,
        shares: Tensor | None,
    ) -> Tensor:
        return way(Call(maps, masks, stored, operator), weights, _amount(threshold, shares))

    return step


def _sparsify(frame: Tensor, stored: Tensor, threshold: float, shares: Tensor | None) -> Tensor:
    """Compare a frame N C H W with the stored map, store what moved."""
    held = stored.permute(0, 3, 1, 2)
    amount = _amount(threshold, shares)
    assert amount is not None
    changed = differs(frame, held, amount)
    held.copy_(torch.where(changed, frame, held))
    return changed


def _forget(stored: list[Tensor], everything_changed: Tensor) -> None:
    """Fill the maps of some streams with a NaN that no frame holds: their next frame is a mask of ones by that."""
    if everything_changed.device.type == "cpu" and not everything_changed.any():
        return
    streams = everything_changed.view(-1, 1, 1, 1)
    for each in stored:
        unseen = each.new_empty(1)
        fill_unseen(unseen)
        each.copy_(torch.where(streams, unseen, each))


def _amount(threshold: float | None, shares: Tensor | None) -> Amount | None:
    return threshold if threshold is None or shares is None else shares * threshold


def _like_mask(stored: Tensor) -> Tensor:
    n, height, width, _ = stored.shape
    return stored.new_empty((n, 1, height, width), dtype=torch.bool)
