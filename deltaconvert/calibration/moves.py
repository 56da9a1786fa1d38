"""Settings made from others, for a search to try next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltaconvert.calibration.setting import Outcome, Setting

PARTS = (0.0, 0.07, 0.15, 0.3, 0.5)  # of the layers, of one setting before and behind those of another
SPANS = (2, 4, 8)  # into so many runs of neighbours the layers are divided


@dataclass(frozen=True)
class Move:
    """A change of a setting at one site.

    factor: of its threshold. turns: whether wide changes become narrow, and narrow ones wide.
    loss, work: what the move was seen to add to the square of the guide's loss, and to the work.
    """

    place: int
    factor: float = 1.0
    turns: bool = False
    loss: float = 0.0
    work: float = 0.0

    def seen(self, before: Outcome, after: Outcome) -> Move:
        """The move with the differences between two outcomes."""
        loss, work = after.guide**2 - before.guide**2, after.work - before.work
        # Less work with less loss is chance: that loss must not be spent elsewhere.
        return replace(self, loss=loss if work > 0 else max(loss, 0.0), work=work)

    def of(self, setting: Setting, part: float = 1.0) -> Setting:
        """The setting after this move, or after a part of it; a turn counts as done from one half on."""
        moved = setting.at(self.place, setting.shares[self.place] * self.factor**part)
        return moved.turned(self.place) if self.turns and part >= 0.5 else moved

    def cost(self, price: float) -> float:
        return self.work + price * self.loss


def reallocated(setting: Setting, moves: Sequence[Move]) -> list[Setting]:
    """At most one move for each threshold, so that the predicted work is least at the same predicted loss.

    Predictions are good for small moves and for few of them, so there are five settings: all moves, all to their square
    root and to their fourth root, and the most promising half and quarter of them. Predictions add up squares of the
    guide's loss, since errors of different layers are independent, and saved work.
    """
    options = [[Move(place)] for place in range(len(setting.shares))]
    for move in moves:
        options[move.place].append(move)

    def cheapest(price: float) -> list[Move]:
        return [min(seen, key=lambda move: move.cost(price)) for seen in options]

    low, high = 1e-12, 1e12  # work for a unit of loss
    for _ in range(80):
        price = math.sqrt(low * high)
        if sum(move.loss for move in cheapest(price)) > 0:
            low = price
        else:
            high = price
    order = sorted(cheapest(high), key=lambda move: move.cost(high))

    def moved_by(part: float, count: int) -> Setting:
        moved = setting
        for move in order[:count]:
            moved = move.of(moved, part)
        return moved

    count = sum(move.factor != 1 or move.turns for move in order)
    parts = {(1.0, count), (0.5, count), (0.25, count), (1.0, -(-count // 2)), (1.0, -(-count // 4))}
    return [moved_by(*part) for part in sorted(parts)]


def in_runs(setting: Setting, layers: Sequence[int], step: float) -> list[Setting]:
    """Runs of neighbouring layers scaled by 1 / step, step and step ** 2. Changes that grow through several layers are
    not stopped by a threshold at one of them."""
    found = []
    for spans in SPANS:
        bounds = [len(layers) * span // spans for span in range(spans + 1)]
        for run in (layers[first:last] for first, last in itertools.pairwise(bounds)):
            but = set(range(len(setting.shares))).difference(run)
            found += [setting.times(factor, but) for factor in (1 / step, step, step**2) if run]
    return found


def crossed(outer: Setting, inner: Setting, layers: Sequence[int]) -> list[Setting]:
    """Settings with the gate, the input and the first and last layers of `outer` and the layers between of `inner`, cut
    in several places. Behind a gate that lets little pass, the first layers hardly need thresholds; `inner`, the
    paper's setting, knows how much later ones bear. Skip connections bring what the input lets pass to the last."""
    cuts = sorted({int(len(layers) * part) for part in PARTS})
    runs = [layers[first : len(layers) - last] for first in cuts for last in cuts]
    pairs = list(enumerate(zip(outer.shares, inner.shares, strict=True)))
    return [
        replace(outer, shares=tuple(theirs if place in run else ours for place, (ours, theirs) in pairs))
        for run in runs
        if run
    ]


def filled(setting: Setting, shares: Sequence[float]) -> Setting:
    """Sites without a threshold get one from `shares`, scaled as the median of the others: no factor could raise a
    zero."""
    ratios = sorted(mine / other for mine, other in zip(setting.shares, shares, strict=True) if mine)
    if not ratios:
        return setting
    ratio = ratios[len(ratios) // 2]
    pairs = zip(setting.shares, shares, strict=True)
    return replace(setting, shares=tuple(mine or other * ratio for mine, other in pairs))
