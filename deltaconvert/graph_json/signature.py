"""The signature of a network's calls as JSON, and back."""

from __future__ import annotations

import keyword
from collections import OrderedDict, namedtuple
from dataclasses import fields, is_dataclass
from typing import Any

from torch.utils import _pytree as pytree

from deltaconvert.errors import ContainerError
from deltaconvert.graph_json.values import MAX_DEPTH, MAX_INT, MAX_ITEMS, Packer, Unpacker, list_in, tagged
from deltaconvert.signature import Signature

MAX_FIELDS = 100  # of a NamedTuple


def signature_to_json(signature: Signature) -> dict[str, Any]:
    """Nested lists, tuples and dicts with {"leaf": place} where tensors and constants go."""
    sides = {
        "inputs": (signature.spec, signature.constants),
        "outputs": (signature.out_spec, signature.out_constants),
    }
    found: dict[str, Any] = {
        side: {
            "tree": _tree_to_json(
                pytree.tree_unflatten([_Leaf(i) for i in range(spec.num_leaves)], spec), side
            ),
            "constants": [[place, _constant(value, side)] for place, value in constants.items()],
        }
        for side, (spec, constants) in sides.items()
    }
    if signature.sizes is not None:
        found["sizes"] = [list(size) for size in signature.sizes]
    return found


class _Leaf(int):
    """A place in the flat list; a number of its own kind, so that no other one is taken for it."""


def _tree_to_json(tree: Any, side: str) -> Any:
    if isinstance(tree, _Leaf):
        return {"leaf": int(tree)}
    if type(tree) is list:
        return [_tree_to_json(item, side) for item in tree]
    if type(tree) is tuple:
        return {"tuple": [_tree_to_json(item, side) for item in tree]}
    if type(tree) in (dict, OrderedDict) and all(type(key) in (str, int) for key in tree):
        tag = "dict" if type(tree) is dict else "ordered_dict"
        return {tag: [[key, _tree_to_json(item, side)] for key, item in tree.items()]}
    if named := _fields_of(tree):
        items = [[key, _tree_to_json(item, side)] for key, item in named.items()]
        return {"record": [type(tree).__name__, items]}
    raise ContainerError(
        f"the network's {side} hold a {type(tree).__name__}: a file can hold tuples, NamedTuples, lists and "
        "dicts with text keys. Wrap the network in a module that takes and returns those, and convert that"
    )


def _fields_of(tree: Any) -> dict[str, Any]:
    """Those of a NamedTuple, and of a dataclass that torch.export.register_dataclass made known; it leaves out None."""
    if isinstance(tree, tuple):
        names = getattr(type(tree), "_fields", ())
    else:
        names = tuple(field.name for field in fields(tree)) if is_dataclass(tree) else ()
    named = {name: getattr(tree, name) for name in names}
    named = {name: item for name, item in named.items() if item is not None}
    return named if len(named) <= MAX_FIELDS and all(map(_is_field, named)) else {}


def _is_field(name: Any) -> bool:
    """Safe to make a class with: namedtuple writes its fields into source."""
    plain = isinstance(name, str) and name.isascii() and name.isidentifier() and len(name) <= 100
    return plain and not keyword.iskeyword(name) and not name.startswith("_")


def _constant(value: Any, side: str) -> Any:
    return Packer().value(
        value, lambda w: len(w) <= 1000, f"a constant among the network's {side}", "constant"
    )


def signature_from_json(value: Any) -> Signature:
    """What signature_to_json wrote. ContainerError for anything else."""
    specs, constants = [], []
    for side in ("inputs", "outputs"):
        entry = value.get(side) if isinstance(value, dict) else None
        if not isinstance(entry, dict):
            raise ContainerError(f"it does not say what its {side} are")
        leaves: list[int] = []
        tree = _tree_from_json(entry.get("tree"), leaves)
        if leaves != list(range(len(leaves))):
            raise ContainerError(f"the leaves of its {side} are not in order")
        unpacked = Unpacker({}).value(list_in(entry.get("constants")), lambda w: len(w) <= 1000)
        if not all(isinstance(pair, list) and len(pair) == 2 and pair[0] in leaves for pair in unpacked):
            raise ContainerError(f"the constants of its {side} have no place")
        specs.append(pytree.tree_flatten(tree)[1])
        constants.append({int(place): constant for place, constant in unpacked})
    call = pytree.tree_unflatten([0] * specs[0].num_leaves, specs[0])
    if not (
        isinstance(call, tuple)
        and len(call) == 2
        and isinstance(call[0], tuple)
        and isinstance(call[1], dict)
    ):
        raise ContainerError("its inputs are no call")
    return Signature(specs[0], constants[0], specs[1], constants[1], _sizes_from_json(value.get("sizes")))


def _sizes_from_json(value: Any) -> tuple[tuple[int | None, ...], ...] | None:
    if value is None:
        return None
    sizes = tuple(tuple(list_in(size)) for size in list_in(value))
    sides = [side for size in sizes for side in size if side is not None]
    if not all(type(side) is int and 0 < side <= MAX_INT for side in sides):
        raise ContainerError("the sizes of its inputs are no sizes")
    return sizes


def _tree_from_json(value: Any, leaves: list[int], depth: int = 0) -> Any:
    if depth > MAX_DEPTH or len(leaves) > MAX_ITEMS:
        raise ContainerError(
            f"its inputs or outputs are nested deeper than {MAX_DEPTH}, or more than {MAX_ITEMS}"
        )
    if isinstance(value, list):
        return [_tree_from_json(item, leaves, depth + 1) for item in value[: MAX_ITEMS + 1]]
    tag, content = tagged(value)
    if tag == "leaf" and type(content) is int:
        leaves.append(content)
        return content
    if tag == "tuple" and isinstance(content, list):
        return tuple(_tree_from_json(content, leaves, depth + 1))
    if tag in ("dict", "ordered_dict") and isinstance(content, list):
        pairs = [
            pair
            for pair in content
            if isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int)
        ]
        if len(pairs) == len(content) and len({pair[0] for pair in pairs}) == len(pairs):
            made = [(key, _tree_from_json(item, leaves, depth + 1)) for key, item in pairs]
            return dict(made) if tag == "dict" else OrderedDict(made)
    if tag == "record" and isinstance(content, list) and len(content) == 2:
        name, made = content[0], _tree_from_json({"dict": content[1]}, leaves, depth + 1)
        is_name = isinstance(name, str) and _is_field(name.lstrip("_"))
        if is_name and 0 < len(made) <= MAX_FIELDS and all(map(_is_field, made)):
            return namedtuple(name, made)(**made)  # type: ignore[misc]
    raise ContainerError(f"its inputs or outputs are of an unknown kind {str(tag)[:80]!r}")
