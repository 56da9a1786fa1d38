"""Chooses how a chain of convolutions is computed, by its geometry alone, so that bits never depend on a
measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltaconvert.backends.cpu.chains import Chain, Stage
from deltaconvert.backends.cpu.winograd import Winograd, suits
from deltaconvert.reach import Window


def fastest(stages: Sequence[Stage], window: Window | None, scratch: Callable[[int], int]) -> Chain:
    """A chain of these stages."""
    if window is not None and suits(stages[0], window):
        return Winograd(stages, window, scratch)
    return Chain(stages, window, scratch)
