"""An operator as text and tensors, which is what operators of torch take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from deltaconvert.graph_json.nodes import operator_from_json, operator_to_json
from deltaconvert.graph_json.values import Packer, Unpacker
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import Fused, stages_of


def describe(operator: Operator, narrow: Sequence[int] = ()) -> tuple[str, dict[str, Tensor]]:
    """(JSON, the tensors that it names). narrow: the places of inputs whose changes are (deltaconvert/narrow.py)."""
    packer = Packer()
    facts: dict[str, Any] = {"stages": [operator_to_json(packer, stage) for stage in stages_of(operator)]}
    if isinstance(operator, Fused):
        facts |= {"counts": operator.counts, "slots": operator.slots, "head_inputs": operator.head_inputs}
    facts |= {"narrow": list(narrow)} if narrow else {}
    return json.dumps(facts | {"weights": list(packer.tensors)}), packer.tensors


def narrow_in(text: str) -> list[int]:
    """The places of the inputs whose changes are narrow."""
    return [int(place) for place in _parsed(text).get("narrow", ())]


def restore(text: str, weights: Sequence[Tensor]) -> Operator:
    """The operator that was described. Its text may come from a file: it can name classes of deltaconvert.ops alone."""
    facts = _parsed(text)
    unpacker = Unpacker(dict(zip(facts["weights"], weights, strict=True)))
    stages = [operator_from_json(stage, unpacker) for stage in facts["stages"]]
    if "counts" not in facts:
        return stages[0]
    return Fused(stages, facts["counts"], facts["slots"], facts["head_inputs"])


@lru_cache(maxsize=4096)
def _parsed(text: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(text)
    return facts
