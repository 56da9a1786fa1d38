"""Thresholds, reaches and gates that differ from stream to stream, for trials that are streams of one batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends import reference
from deltaconvert.gate import Gate, Watch
from deltaconvert.reach import Reach, narrowed


def threshold_of(edge: Any, shares: Tensor | None, amounts: list[float], weighted: list[bool]) -> Any:
    """The threshold of an edge for the amounts of its streams: a number or (C) if all are the same, else
    (N, 1 or C, 1, 1). weighted: the streams whose amount is multiplied by `shares`, (C), if there are any."""
    by_channels = [wanted and shares is not None for wanted in weighted]
    shares = torch.ones(()) if shares is None else shares
    exact = 0.0 if isinstance(edge, reference.FrameEdge) else None
    if len({(amount, wanted) for amount, wanted in zip(amounts, by_channels, strict=True)}) == 1:
        amount = amounts[0] if amounts[0] > 0 else exact
        return amount * shares if amount and by_channels[0] else amount
    if exact is None:  # every candidate is a change
        amounts = [amount if amount > 0 else -1.0 for amount in amounts]
    table = torch.tensor(amounts, dtype=edge.values.dtype, device=edge.values.device).view(-1, 1, 1, 1)
    if not any(by_channels):
        return table
    rows = [shares if wanted else torch.ones_like(shares) for wanted in by_channels]
    return table * torch.stack(rows)[:, :, None, None]


class Mixed:
    """A reach that is narrow for some streams."""

    def __init__(self, reach: Reach, narrow: Sequence[bool], device: torch.device):
        self._both = reach, narrowed(reach)
        self._narrow = torch.tensor(narrow, device=device).view(-1, 1, 1, 1)

    def spread(self, mask: Tensor) -> Tensor:
        wide, narrow = (reach.spread(mask) for reach in self._both)
        return torch.where(self._narrow, narrow, wide)


def reach_of(reach: Reach, narrow: Sequence[bool], device: torch.device) -> Any:
    """The reach of an input, given which streams see its changes narrowly."""
    if not any(narrow) or narrowed(reach) is reach:
        return reach
    return narrowed(reach) if all(narrow) else Mixed(reach, narrow, device)


class _Watches:
    """Several gates, each for some streams of a batch."""

    def __init__(self, watches: list[Watch], streams: list[int]):
        self._watches, self._streams = watches, streams

    def look(self, frame: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(self._watches, frame.split(self._streams), stored.split(self._streams), strict=True)
        frames, masks = zip(*(watch.look(*part) for watch, *part in parts), strict=True)
        return torch.cat(frames), torch.cat(masks)

    def sleep(self, streams: Collection[int]) -> None:
        """None of a trial's streams sleeps."""


def watch_of(edge: Any, gates: list[Gate], amounts: list[float]) -> Any:
    """The gate for the frames of all streams; neighbouring streams with the same gate share one."""
    if not any(gate.to_json() for gate in gates):
        return None
    values, watches, streams = edge.values, [], []
    images = len(values) // len(gates)  # of each setting; several if the clip has batches
    wide = torch.promote_types(values.dtype, torch.float32)
    for (gate, exact), group in groupby(
        zip(gates, amounts, strict=True), lambda pair: (pair[0], pair[1] == 0)
    ):
        limits = [amount for _, amount in group]
        limit: float | Tensor = limits[0]
        if not exact and len(limits) > 1:
            limit = torch.tensor(limits, dtype=wide, device=values.device).view(-1, 1, 1, 1)
        streams.append(len(limits) * images)
        watches.append(Watch(gate, (streams[-1], *values.shape[1:]), values.dtype, values.device, limit))
    return watches[0] if len(watches) == 1 else _Watches(watches, streams)
