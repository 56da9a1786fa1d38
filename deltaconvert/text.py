"""Words and tables for people: what a node calls, how large something is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from deltaconvert.nodes import operator_of
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.paired import Paired


def label(node: fx.Node) -> str:
    """What a node calls, for people: Conv2d + relu, linear, view."""
    operator = operator_of(node)
    if operator is not None:
        return _name(operator)
    if node.op == "call_module":
        return type(node.graph.owning_module.get_submodule(str(node.target))).__name__
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))


def _name(operator: Any) -> str:
    if isinstance(operator, Fused):
        return " + ".join(map(_name, operator.stages))
    if isinstance(operator, Paired):
        return f"{_name(operator.first)} + {_name(operator.window)}"
    if isinstance(operator, ConvSum):
        return f"{_name(operator.first)} + {_name(operator.second)} + add"
    return str(getattr(operator, "function", type(operator).__name__))


def size_text(size: int) -> str:
    """1.5 MB and the like, in powers of ten."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def counted(count: int, one: str, several: str | None = None) -> str:
    """counted(2, "thread") is "2 threads"."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Columns padded to their widest cell."""
    rows = [tuple(head), *(tuple(row) for row in body)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
