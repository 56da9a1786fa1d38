"""What a task of accuracy.py is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deltaconvert.metrics import relative_l2


@dataclass
class Task:
    """One network on one clip.

    frames: uint8 (H, W, 3) by number; prepare: to the network's input, of the task's own size or another; decode: of an
    output, what `score` takes.
    score(found, dense, numbers): higher is better; `truth` says what it is against. accepted: the loss of it that the
    issue accepts. resized: what `decode` makes of the output of an input at a share of the resolution.
    metric(ours, dense): what thresholds are calibrated by, of what `features` makes of outputs: it is smoother than a
    score of a few frames. spent: the loss of it that both ways of calibration may cause, as the share that one
    threshold for all layers would cause it with; or `budget`, the loss itself. streams: settings tried at a time.
    A score must tell a loss that is accepted from chance: noise of one grey level alone may not cost the dense network
    more. Where it does, `score` is a firmer one and `plain` the usual one, which is kept beside it. sure(dense, noisy):
    what of the dense network's answer `score` compares with, given its answers to the frame under such noise.
    precise: rounding to half precision alone would cost it more than is accepted. on_host: what `decode` gives lies in
    host memory, and `score` takes long.
    """

    name: str
    network: nn.Module
    frames: Callable[[Sequence[int]], Iterator[Tensor]]
    calibration: Sequence[int]
    test: Sequence[int]
    prepare: Callable[..., Tensor]
    decode: Callable[[Any], Any]
    resized: Callable[[Any, tuple[int, int]], Any]
    score: Callable[[list[Any], list[Any], Sequence[int]], float]
    truth: str
    accepted: float
    features: Callable[[Any], Any]
    streams: int
    spent: float = 0.0
    budget: float = 0.0
    precise: bool = False
    on_host: bool = False
    metric: Callable[[Sequence[Any], Sequence[Any]], float] = relative_l2
    guide: Callable[[Sequence[Any], Sequence[Any]], float] | None = None
    plain: Callable[[list[Any], list[Any], Sequence[int]], float] | None = None
    sure: Callable[[Any, Sequence[Any]], Any] | None = None
