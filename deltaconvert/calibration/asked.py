"""What calibrate is asked for, or an error that says what does not fit, and the way out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

from deltaconvert.calibration.trials import Trials
from deltaconvert.errors import InputError
from deltaconvert.gate import Gate
from deltaconvert.metrics import METRICS, Metric, name_of
from deltaconvert.text import counted

METHODS = ("allocate", "front_to_back")


def expect_ways(method: str, by: str, against: Any, decode: Any) -> None:
    """How it searches, and the functions that it calls."""
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}: choose from {', '.join(METHODS)}")
    if by not in ("work", "time"):
        raise InputError(f"by={by!r}: work or time")
    for name, function in (("against", against), ("decode", decode)):
        if function is not None and not callable(function):
            raise InputError(f"{name} is a {type(function).__name__}: it is a function")
    if against is not None and by != "time":
        raise InputError("against= is timed beside the network, which by='time' asks for")


def expect_budget(budget: float, metric: Metric) -> None:
    """A loss above 0; of a metric by name also one below 1, where nothing would be left to lose."""
    if isinstance(budget, bool) or not isinstance(budget, Real) or not 0 < float(budget) < math.inf:
        raise InputError(f"budget={budget!r}: it is a loss above 0 that is still accepted")
    function = metric.func if isinstance(metric, partial) else metric
    if budget >= 1 and function in METRICS.values():
        raise InputError(
            f"budget={budget}: {name_of(metric)} is a share, and at 1 all is lost; {budget:g} % is {budget / 100:g}"
        )


def expect_numbers(seconds: float, **least: tuple[Any, int]) -> None:
    """least: the value of an option that is a whole number, and the least that it may be."""
    if not isinstance(seconds, Real) or not float(seconds) > 0:
        raise InputError(f"seconds={seconds!r}: the search needs some")
    for name, (value, smallest) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise InputError(f"{name}={value!r}: it is a whole number from {smallest}")


def gates_of(gates: Any) -> tuple[Gate, ...]:
    """The gates to try, each as convert(gate=...) takes one."""
    if not isinstance(gates, Sequence) or isinstance(gates, str) or not gates:
        raise InputError(f"gates={gates!r}: give a list of them, [Gate()] for none but thresholds")
    for gate in gates:
        if not isinstance(gate, Gate | Mapping):
            raise InputError(f"gates has a {type(gate).__name__}: give each as Gate(smooth=5) or a dict")
    return tuple(map(Gate.of, gates))


def expect_parts(others: Sequence[Any] | None, parts: int) -> None:
    """As many frames to check with as there are parts of them."""
    if others is None and parts > 1:
        raise InputError(f"check_parts={parts} divides the frames of check=, and none were given")
    if others is not None and len(others) < parts:
        raise InputError(f"check_parts={parts}: there are {counted(len(others), 'frame')} to check with")


def expect_loss(trials: Trials, budget: float) -> None:
    """Refuse a score, which is best where it is highest: the search would find the worst thresholds for it."""
    own = trials.dense_loss()
    if not own <= budget:
        raise InputError(
            f"the metric gives {own:.4g} for the dense network's own outputs, more than the budget of {budget:.4g}: it "
            "has to be a loss, 0 where outputs are the dense ones"
        )
