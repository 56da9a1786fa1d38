"""How large a change must be to count, and where: the user's rules and what they come to at each node.

A change is dropped at a node if no channel of the pixel moved by more than the node's threshold. Rules are numbers in
the units of the feature map, or percentages of its mean magnitude on the example frame ("10%"). With the word
"weighted" behind it ("10% weighted") a rule asks more of channels that the next layers hardly read, and less of those
that they read most. With the word "narrow" a change of the node reaches only the output pixel in the middle of whose
window it lies.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

from deltaconvert.errors import InputError
from deltaconvert.gate import Gate

Rule = float | str
FORMAT, VERSION = "deltaconvert-thresholds", 1
WEIGHTED, NARROW = "weighted", "narrow"
KINDS = ("input", "activation", "linear", "gate", "statistics")


@dataclass(frozen=True)
class Thresholds:
    """Rules by kind of node, by path, and by pattern of paths; and the gate, None if none was asked for.

    The kinds (KINDS):
    input       the frames themselves
    activation  activations, and maps that come back from a dense island
    linear      convolutions that no activation follows: depthwise ones before their products, projections of residuals.
                The paper has thresholds at activations only; one here can stop what grew around a change before the
                next layer, which is often a larger one.
    gate        a 1x1 map that scales a larger one; when it moves, its whole map is recomputed
    statistics  the means and deviations of group and instance norms, in the units of the map that they normalise;
                percentages are of their mean deviation. When one moves, the whole map is recomputed.

    A path takes precedence over a pattern, a later rule over an earlier one, and both over the kind; but patterns do
    not apply to linear nodes. A node that several calls were fused into is reached by the path of each of them. The
    name of a kind always means the kind: a node whose path is "input" is reached by the pattern "[i]nput".
    """

    rules: Mapping[str, Rule]
    gate: Gate | None = None

    @property
    def outlasts_refresh(self) -> bool:
        """There are narrow changes, and a refresh of the frame does not renew what they left out."""
        refreshed = self.gate is not None and self.gate.refresh > 0
        return refreshed and any(NARROW in _parts(rule)[1] for rule in self.rules.values())

    @classmethod
    def of(cls, value: Threshold) -> Thresholds:
        """From what convert(threshold=...) takes: one rule for inputs and activations, a mapping of rules, or a file
        of them (a path that ends in .json), as `calibrate` makes them.

        One rule above zero gives gates and statistics a threshold of their own, 1 %: without it one that moves by a
        rounding error would recompute its map in every frame.
        """
        if isinstance(value, Thresholds):
            return value
        if isinstance(value, PathLike) or (isinstance(value, str) and value.endswith(".json")):
            return cls.read(value)
        if isinstance(value, Mapping):
            rules = {kind: 0.0 for kind in KINDS} | dict(value)
        else:
            small = "1%" if _amount(value, 1.0) > 0 else 0.0
            rules = {"input": value, "activation": value, "linear": 0.0, "gate": small, "statistics": small}
        for name, rule in rules.items():
            if not isinstance(name, str):
                raise InputError(f"{name!r} names no node: rules go by kind, path or pattern")
            _amount(rule, 1.0, name)
        return cls(rules)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Thresholds:
        """From a file that `write` made. InputError if it is another one, OSError if there is none."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            known = found["format"] == FORMAT and found["version"] <= VERSION
            rules, gate = dict(found["threshold"]), found.get("gate")
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} holds no thresholds: make it with deltaconvert calibrate") from error
        if not known:
            raise InputError(f"{path} is of a newer version: pip install --upgrade deltaconvert")
        return cls(cls.of(rules).rules, None if gate is None else Gate.of(gate))

    def write(self, path: str | PathLike[str], **facts: Any) -> None:
        """One JSON file; `facts` travel along: where the thresholds came from."""
        gate = {} if self.gate is None else {"gate": self.gate.to_json()}
        content = {"format": FORMAT, "version": VERSION, "threshold": dict(self.rules), **gate, **facts}
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def at(self, kind: str | None, names: Sequence[str], scale: float) -> tuple[float, list[str]]:
        """(threshold, words) of a node. names: its paths; scale: the mean magnitude of its values. A node without a
        kind has only the rule of its path."""
        rule, by_path = self.rules.get(kind, 0.0) if kind else 0.0, None
        for pattern, candidate in self.rules.items():
            if pattern in KINDS:
                continue
            if pattern in names or (kind == "linear" and pattern in map(as_rule, names)):
                by_path = candidate
            elif kind not in (None, "linear") and matches(pattern, names):
                rule = candidate
        rule = rule if by_path is None else by_path
        return _amount(rule, scale, names[0]), _parts(rule)[1]

    def with_gate(self, gate: Gate | Mapping[str, Any]) -> Thresholds:
        """A Gate replaces the one that they have; a mapping changes single settings of it."""
        return replace(self, gate=Gate.of(gate, self.gate))

    def resolved(self, placed: Iterable[tuple[Sequence[str], Rule]]) -> Thresholds:
        """These rules with what they came to at nodes, (names of a node, amount), which takes precedence."""
        exact = {as_rule(name): amount for names, amount in placed for name in names}
        # A later rule wins: that of a second call stands behind the first's, by whose path the second goes as well.
        exact = dict(sorted(exact.items(), key=lambda rule: "#" in rule[0]))
        rest = {name: rule for name, rule in self.rules.items() if name not in exact}
        return Thresholds(rest | exact, self.gate)


_WILD = re.compile(r"[*?[]")  # what makes a pattern of a path
Threshold = Rule | Mapping[str, Rule] | PathLike[str] | Thresholds  # what convert(threshold=...) takes


def matches(pattern: str, names: Collection[str]) -> bool:
    """Whether `pattern`, a path or a pattern of paths, matches a node that has these names."""
    if pattern in names:
        return True
    return _WILD.search(pattern) is not None and any(fnmatchcase(name, pattern) for name in names)


def refuse_unknown(patterns: Iterable[str], names: Collection[str], option: str) -> None:
    """InputError for the first of `patterns` that is no kind and means none of the nodes `names`."""
    kinds = KINDS if option == "threshold" else ()
    for pattern in patterns:
        if pattern in kinds or matches(pattern, names):
            continue
        if any(name.startswith(f"{pattern}.") for name in names):
            hint = f"its parts are {pattern}.*"
        else:
            close = get_close_matches(pattern, (*kinds, *names), n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "explain() lists the paths"
        raise InputError(f"{option}: {pattern!r} names no node of the network: {hint}")


def as_rule(path: str) -> str:
    """The rule that means the node `path` and nothing else; the names of kinds are taken."""
    return f"[{path[0]}]{path[1:]}" if path in KINDS else path


def _parts(rule: Rule) -> tuple[Rule, list[str]]:
    """The amount, and the words behind it."""
    if not isinstance(rule, str):
        return rule, []
    parts = rule.split()
    words = [word for word in parts if word in (WEIGHTED, NARROW)]
    return " ".join(parts[: len(parts) - len(words)]), words


def _amount(rule: Rule, scale: float, name: str = "threshold") -> float:
    try:
        if isinstance(rule, bool):
            raise ValueError
        number, words = _parts(rule)
        if isinstance(rule, str) and rule.split() != [*str(number).split(), *words]:
            raise ValueError
        relative = isinstance(number, str) and number.endswith("%")
        amount = float(str(number)[:-1]) / 100 * scale if relative else float(number)
    except (TypeError, ValueError):
        raise InputError(
            f'{name}={rule!r} is no threshold: give a number such as 0.05, or a share such as "10%"; {WEIGHTED} and '
            f"{NARROW} may follow"
        ) from None
    if not math.isfinite(amount) or amount < 0:
        raise InputError(f"{name}={rule!r} is no threshold: it must be finite and not negative")
    return amount
