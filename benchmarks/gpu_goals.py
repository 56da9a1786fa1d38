"""The goals of the CUDA backend, and whether the record meets them: a table for docs/performance.md.

There are two sets of goals, all at threshold 0 and against the best dense engine of the run. For a goal over several
units the table names those that miss it, or the worst of those that meet it, and counts the units that were not
measured. e is `efficiency` of benchmarks/gpu.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import cost_law
from benchmarks.gpu_record import NAMES, Unit, by_unit, dense_ms, markdown, most_telling_first

Row = dict[str, Any]
LONG = 2.0  # milliseconds: the first set has goals for e where dense takes longer
FIRST, SECOND = "first", "second"


class Goal(NamedTuple):
    """`value`, which gives a number and its case from a unit's rows, has to be at least, or at most, `bound`."""

    set: str
    what: str
    units: Sequence[Unit]
    value: Callable[[list[Row]], tuple[float, str]]
    bound: float
    at_least: bool = True
    long: bool = False  # only for units whose dense network takes longer than LONG

    @property
    def text(self) -> str:
        return f"{self.what} {'>=' if self.at_least else '<='} {self.bound:g}"

    def met(self, value: float) -> bool:
        return (operator.ge if self.at_least else operator.le)(value, self.bound)


def the(key: str, case: str) -> Callable[[list[Row]], tuple[float, str]]:
    """The value of one case."""
    return lambda rows: next((row[key], "") for row in rows if row["case"] == case)


def worst_efficiency(rows: list[Row]) -> tuple[float, str]:
    cases = ("5%", "10%", "25%", "50%")
    return min((row["efficiency"], row["case"]) for row in rows if row["case"] in cases)


def everything_changed(rows: list[Row]) -> tuple[float, str]:
    """The time of a frame that changes everywhere, as a multiple of dense's."""
    return 1 / the("ratio", "100%")(rows)[0], ""


def slope(rows: list[Row]) -> tuple[float, str]:
    """b of the cost law, as a multiple of dense's time."""
    return cost_law.of(rows).b / dense_ms(rows), ""


def _units(kinds: Sequence[str], batch: int, *networks: str) -> list[Unit]:
    return [Unit(network, kind, batch) for network in networks for kind in kinds]


def _faster(set: str, kind: str, batch: int, case: str, times: float) -> Goal:
    what = f"{NAMES['resnet50']} {kind}, batch {batch}, {case}: times faster"
    return Goal(set, what, _units([kind], batch, "resnet50"), the("ratio", case), times)


ALL = most_telling_first()
ALONE = [unit for unit in ALL if unit.batch == 1]
WIDE = _units(["half", "tf32"], 8, "resnet50", "unet", "dncnn", "deeplabv3_resnet50")
NARROW = [*_units(["half"], 8, "mobilenetv2", "efficientnet_b0"), *_units(["half"], 32, "hrnet_w32")]
GOALS = (
    _faster(FIRST, "half", 8, "5%", 4),
    _faster(FIRST, "tf32", 8, "5%", 5),
    _faster(FIRST, "half", 1, "5%", 3),
    _faster(FIRST, "tf32", 1, "5%", 5),
    Goal(FIRST, "still frame, batch 1, ms", ALONE, the("delta_ms", "still"), 0.25, at_least=False),
    Goal(FIRST, "e at 5-50 %, dense over 2 ms", ALL, worst_efficiency, 0.5, long=True),
    Goal(FIRST, "100 % changed, of dense", ALL, everything_changed, 1.25, at_least=False),
    Goal(SECOND, "e at 5-50 %, batch 8, wide networks", WIDE, worst_efficiency, 0.85),
    Goal(SECOND, "e at 5-50 %, narrow networks", NARROW, worst_efficiency, 0.7),
    _faster(SECOND, "half", 8, "5%", 7),
    _faster(SECOND, "half", 8, "1%", 12),
    _faster(SECOND, "half", 1, "5%", 5),
    _faster(SECOND, "half", 1, "1%", 7),
    Goal(
        SECOND,
        "ResNet-50 half, batch 1, still frame, ms",
        _units(["half"], 1, "resnet50"),
        the("delta_ms", "still"),
        0.12,
        at_least=False,
    ),
    Goal(SECOND, "100 % changed, of dense", ALL, everything_changed, 1.05, at_least=False),
    Goal(SECOND, "what a frame costs: b of dense", ALL, slope, 1.2, at_least=False),
)


def table(facts: dict[str, Any]) -> str:
    units = by_unit(facts)
    return markdown(
        ("goals", "goal", "met by", "missed by", "not measured"), [_line(goal, units) for goal in GOALS]
    )


def _line(goal: Goal, units: dict[Unit, list[Row]]) -> tuple[str, ...]:
    known = {unit: units[unit] for unit in goal.units if unit in units}
    found = {unit: goal.value(rows) for unit, rows in known.items() if not goal.long or dense_ms(rows) > LONG}
    met = {unit: value for unit, value in found.items() if goal.met(value[0])}
    missed = "; ".join(_told(goal, unit, *found[unit]) for unit in found if unit not in met)
    return goal.set, goal.text, _worst(goal, met), missed, str(len(goal.units) - len(known) or "")


def _worst(goal: Goal, met: dict[Unit, tuple[float, str]]) -> str:
    """How many units met the goal, and which of them was closest to missing it."""
    if not met:
        return ""
    unit = (min if goal.at_least else max)(met, key=lambda unit: met[unit][0])
    told = _told(goal, unit, *met[unit])
    return told if len(goal.units) == 1 else f"{len(met)} units, the worst {told}"


def _told(goal: Goal, unit: Unit, value: float, case: str) -> str:
    named = f"{unit} " * (len(goal.units) > 1)
    return f"{named}{value:.2f}" + f" ({case})" * bool(case)
