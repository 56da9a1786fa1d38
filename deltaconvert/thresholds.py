"""How large a change must be to count, and where: the user's rules and what they come to at each node.

A change is dropped at a node if no channel of the pixel moved by more than the node's threshold. Rules are numbers in
the units of the feature map, or percentages of its mean magnitude on the example frame ("10%").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

from deltaconvert.errors import InputError

Rule = float | str
KINDS = ("input", "activation", "gate")


@dataclass(frozen=True)
class Thresholds:
    """Rules by kind of node ("input", "activation", "gate") and by the path of a node or a pattern of paths.

    input: the frames themselves. activation: activations, and maps that come back from a dense island.
    gate: a 1x1 map that scales a larger one; when it moves, its whole map is recomputed.
    A path goes before a pattern, a later pattern before an earlier one, and both before the kind.
    """

    rules: Mapping[str, Rule]

    @classmethod
    def of(cls, value: Rule | Mapping[str, Rule] | Thresholds) -> Thresholds:
        """From what convert(threshold=...) takes: one rule for inputs and activations, or a mapping of rules.

        One rule above zero gives gates a threshold of their own, 1 % of their magnitude: without it a gate that moves
        by a rounding error would recompute its map in every frame.
        """
        if isinstance(value, Thresholds):
            return value
        if isinstance(value, Mapping):
            rules = {kind: 0.0 for kind in KINDS} | dict(value)
        else:
            rules = {"input": value, "activation": value, "gate": "1%" if _amount(value, 1.0) > 0 else 0.0}
        for name, rule in rules.items():
            _amount(rule, 1.0, name)
        return cls(rules)

    def at(self, kind: str, path: str, scale: float) -> float:
        """The threshold of the node `path` of that kind, whose values have the mean magnitude `scale`."""
        rule = self.rules[kind]
        for pattern, candidate in self.rules.items():
            if pattern not in KINDS and fnmatch(path, pattern):
                rule = candidate
        return _amount(self.rules.get(path, rule) if path not in KINDS else rule, scale, path)


def _amount(rule: Rule, scale: float, name: str = "threshold") -> float:
    try:
        if isinstance(rule, bool):
            raise ValueError
        if isinstance(rule, str) and rule.strip().endswith("%"):
            amount = float(rule.strip()[:-1]) / 100 * scale
        else:
            amount = float(rule)
    except (TypeError, ValueError):
        raise InputError(
            f'{name}={rule!r} is no threshold: give a number such as 0.05, or a share such as "10%"'
        ) from None
    if not math.isfinite(amount) or amount < 0:
        raise InputError(f"{name}={rule!r} is no threshold: it must be finite and not negative")
    return amount
