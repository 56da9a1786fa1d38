"""What the CUDA backend is to reach, and what the record says of it: a table for docs/performance.md.

Two sets of goals, all at threshold 0 and against the best dense network of the run. A goal over several units names the
ones that miss it; units that were not measured are named as well. e is `efficiency` of benchmarks/gpu.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.gpu_record import Unit, by_unit, dense_ms, markdown, of_worth

Row = dict[str, Any]
LONG = 2.0  # milliseconds: the first set asks for e where dense takes longer
FIRST, SECOND = "first", "second"


class Goal(NamedTuple):
    """Of each of `units`, the worst `value` over the rows of `cases` is to be at least, or at most, `bound`."""

    set: str
    what: str
    units: Sequence[Unit]
    cases: Sequence[str]
    value: Callable[[Row], float]
    bound: float
    at_least: bool = True
    long: bool = False  # only where dense takes over LONG

    @property
    def text(self) -> str:
        return f"{self.what} {'>=' if self.at_least else '<='} {self.bound:g}"

    def worst(self, rows: Sequence[Row]) -> tuple[float, str]:
        """(value, case)."""
        found = [(self.value(row), row["case"]) for row in rows if row["case"] in self.cases]
        return (min if self.at_least else max)(found)

    def met(self, value: float) -> bool:
        return (operator.ge if self.at_least else operator.le)(value, self.bound)


def _of(key: str) -> Callable[[Row], float]:
    return operator.itemgetter(key)


def _cost(row: Row) -> float:
    return 1 / row["ratio"]


def _resnet(kind: str, batch: int) -> list[Unit]:
    return [Unit("resnet50", kind, batch)]


SOME = ("5%", "10%", "25%", "50%")
ALONE = [unit for unit in of_worth() if unit.batch == 1]
WIDE = [
    Unit(network, kind, 8)
    for network in ("resnet50", "unet", "dncnn", "deeplabv3_resnet50")
    for kind in ("half", "tf32")
]
NARROW = [
    Unit("mobilenetv2", "half", 8),
    Unit("efficientnet_b0", "half", 8),
    Unit("hrnet_w32", "half", 32),
]
GOALS = (
    *(
        Goal(
            FIRST,
            f"ResNet-50 {kind}, batch {batch}, 5 %: times faster",
            _resnet(kind, batch),
            ("5%",),
            _of("ratio"),
            x,
        )
        for kind, batch, x in (("half", 8, 4), ("tf32", 8, 5), ("half", 1, 3), ("tf32", 1, 5))
    ),
    Goal(FIRST, "still frame, batch 1, ms", ALONE, ("still",), _of("delta_ms"), 0.25, at_least=False),
    Goal(FIRST, "e at 5-50 %, dense over 2 ms", of_worth(), SOME, _of("efficiency"), 0.5, long=True),
    Goal(FIRST, "100 % changed, of dense", of_worth(), ("100%",), _cost, 1.25, at_least=False),
    Goal(SECOND, "e at 5-50 %, batch 8, wide networks", WIDE, SOME, _of("efficiency"), 0.85),
    Goal(SECOND, "e at 5-50 %, narrow networks", NARROW, SOME, _of("efficiency"), 0.7),
    *(
        Goal(
            SECOND,
            f"ResNet-50 half, batch {batch}, {case}: times faster",
            _resnet("half", batch),
            (case,),
            _of("ratio"),
            x,
        )
        for batch, case, x in ((8, "5%", 7), (8, "1%", 12), (1, "5%", 5), (1, "1%", 7))
    ),
    Goal(
        SECOND,
        "ResNet-50 half, batch 1, still frame, ms",
        _resnet("half", 1),
        ("still",),
        _of("delta_ms"),
        0.12,
        at_least=False,
    ),
    Goal(SECOND, "100 % changed, of dense", of_worth(), ("100%",), _cost, 1.05, at_least=False),
)


def table(facts: dict[str, Any]) -> str:
    units = by_unit(facts)
    return markdown(
        ("goals", "goal", "met by", "missed by", "not measured"), [_line(goal, units) for goal in GOALS]
    )


def _line(goal: Goal, units: dict[Unit, list[Row]]) -> tuple[str, ...]:
    met, missed, unknown = [], [], 0
    for unit in goal.units:
        if unit not in units:
            unknown += 1
        elif not goal.long or dense_ms(units[unit]) > LONG:
            value, case = goal.worst(units[unit])
            told = f"{value:.2f}" + (f" ({case})" if len(goal.cases) > 1 else "")
            if len(goal.units) > 1:
                told = f"{unit} {told}"
            (met if goal.met(value) else missed).append(told)
    return goal.set, goal.text, "; ".join(met), "; ".join(missed), str(unknown or "")
