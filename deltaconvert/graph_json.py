"""A normalised graph, and the signature of its calls, as JSON and named tensors: the inside of a converted
file.

What comes back from a file is checked value by value: names are identifiers, operators are those of
deltaconvert.ops, functions and methods those of deltaconvert.vocabulary, a node reads only nodes before it.
docs/format.md has the form.
"""

from __future__ import annotations

import inspect
import keyword
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.check import operator_of
from deltaconvert.errors import ContainerError
from deltaconvert.ops.base import Operator, known_modules, operator_types
from deltaconvert.trace import Signature
from deltaconvert.vocabulary import METHODS, function_named, name_of, word_allowed

MAX_NODES = 20_000
MAX_ITEMS = 10_000  # of one list; indices and sizes are short, a table of constants would be a tensor
MAX_DEPTH = 16
MAX_INT = 2**63 - 1
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_SETTING = re.compile(r"[A-Za-z0-9_-]{0,40}")
_DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
_FORMATS = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.channels_last, torch.preserve_format)
}
_WAY_OUT = (
    "a file can hold functions of torch and deltaconvert's operators only. Convert the part of the network "
    "around it and call it from your own code, or write it with functions of torch"
)
Words = Callable[[str], bool]


def dtype_named(name: Any) -> torch.dtype:
    """float32 -> torch.float32; ContainerError for what no converted network has."""
    if not isinstance(name, str) or name not in _DTYPES:
        raise ContainerError(f"it has values of an unknown type {name!r}")
    return _DTYPES[name]


# ---- writing


class Packer:
    """Turns values into JSON and collects the tensors among them; equal tensors are written once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._written: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def value(self, value: Any, words: Words, where: str, name: str) -> Any:
        """words: which strings may stand here. where: for messages. name: of a tensor found in it."""
        go = partial(self.value, words=words, where=where, name=name)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value, where, name)}
        if type(value) is int and abs(value) <= MAX_INT:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if type(value) is str and words(value):
            return value
        if isinstance(value, torch.dtype) and value in _DTYPES.values():
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.memory_format) and value in _FORMATS.values():
            return {"memory_format": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": value.type}
        if isinstance(value, slice):
            return {"slice": [go(value.start), go(value.stop), go(value.step)]}
        if value is Ellipsis:
            return {"ellipsis": True}
        if type(value) in (tuple, torch.Size):
            return {"tuple": [go(item) for item in value]}
        if isinstance(value, list):
            return [go(item) for item in value]
        if isinstance(value, dict):
            return {"dict": [[go(key), go(item)] for key, item in value.items()]}
        raise ContainerError(f"{where} takes {value!r}, which a file cannot hold: {_WAY_OUT}")

    def _tensor(self, tensor: Tensor, where: str, name: str) -> list[str]:
        """[its name in the file, its memory format]: another memory format may round differently."""
        tensor = tensor.detach()
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.dtype not in _DTYPES.values():
            raise ContainerError(
                f"{where} has a tensor of {tensor.dtype} ({tensor.layout}): a file cannot hold it"
            )
        last = tensor.dim() == 4 and not tensor.is_contiguous() and _is_last(tensor)
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        written = self._written.get(key) if tensor.numel() else None
        if written is None:
            written = name
            while written in self.tensors:
                written += "_"
            self._written[key] = written
            plain = tensor.contiguous().cpu()
            if (
                plain.untyped_storage().data_ptr() in self._storages
            ):  # part of a larger one that is written too
                plain = plain.clone()
            self._storages.add(plain.untyped_storage().data_ptr())
            self.tensors[written] = plain
        return [written, "channels_last" if last else "contiguous"]


def _is_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def graph_to_json(gm: fx.GraphModule) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """(nodes, tensors) of a normalised graph. ContainerError names the first node that a file cannot hold."""
    packer = Packer()
    return [_node_to_json(packer, gm, node) for node in gm.graph.nodes], packer.tensors


def _node_to_json(packer: Packer, gm: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    path = node.meta.get("path", node.name)
    out: dict[str, Any] = {"name": node.name, "path": path}
    if "parts" in node.meta:
        out["parts"] = list(node.meta["parts"])
    if "why_dense" in node.meta:
        out["why_dense"] = node.meta["why_dense"]
    target, where = str(node.target), f"{path} ({node.target})"
    pack = partial(packer.value, words=_is_setting, where=where)
    if node.op == "placeholder":
        return {**out, "op": "input"}
    if node.op == "get_attr":
        value: Any = gm
        for part in target.split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            raise ContainerError(f"{where} is a {type(value).__name__}: {_WAY_OUT}")
        return {**out, "op": "tensor", "value": pack(value, name=node.name)}
    if node.op == "call_module":
        module = gm.get_submodule(target)
        operator = operator_of(node)
        out["op"], out["type"] = ("module" if operator is None else "operator"), type(module).__name__
        if operator is not None and operator_types().get(out["type"]) is type(operator):
            settings = operator.settings()
        elif _nn_modules().get(out["type"]) is type(module):
            settings = _nn_settings(module)
            state = module.state_dict()
            out["state"] = {key: pack(value, name=f"{node.name}.{key}") for key, value in state.items()}
        else:
            raise ContainerError(
                f"{path} stays whole, a module of the class {type(module).__qualname__}: {_WAY_OUT}"
            )
        out["settings"] = {key: pack(value, name=f"{node.name}.{key}") for key, value in settings.items()}
    elif node.op == "call_function":
        named = name_of(node.target)
        if named is None:
            home = getattr(node.target, "__module__", None)
            raise ContainerError(
                f"{path} calls {getattr(node.target, '__qualname__', node.target)} of {home}: {_WAY_OUT}"
            )
        out["op"], out["target"] = "function", named
    elif node.op == "call_method":
        if target not in METHODS:
            raise ContainerError(f"{path} calls Tensor.{target}: {_WAY_OUT}")
        out["op"], out["target"] = "method", target
    else:
        out["op"] = "output"
    pack = partial(
        packer.value, words=partial(word_allowed, target=out.get("target", "")), where=where, name=node.name
    )
    out["args"] = [pack(arg) for arg in node.args]
    if node.kwargs:
        out["kwargs"] = {key: pack(value) for key, value in node.kwargs.items()}
    return out


def operator_to_json(packer: Packer, operator: Operator) -> dict[str, Any]:
    """One operator alone: its class and what its __init__ took."""
    pack = partial(packer.value, words=_is_setting, where=type(operator).__name__)
    settings = {key: pack(value, name=key) for key, value in operator.settings().items()}
    return {"type": type(operator).__name__, "settings": settings}


def _nn_modules() -> dict[str, type[nn.Module]]:
    """The modules of torch.nn that deltaconvert knows: one whose options it does not know stays as it is."""
    return {cls.__name__: cls for cls in known_modules() if cls.__module__.startswith("torch.nn.modules.")}


def _nn_settings(module: nn.Module) -> dict[str, Any]:
    """The arguments that make such a module, from its attributes."""
    settings = {}
    for name in inspect.signature(type(module).__init__).parameters:
        if name not in ("self", "device", "dtype", "inplace") and hasattr(module, name):
            value = getattr(module, name)
            settings[name] = value is not None if name == "bias" else value
    return settings


# ---- reading


class Unpacker:
    """Turns JSON into values; knows the tensors of the file and the nodes so far."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors
        self.nodes: dict[str, fx.Node] = {}

    def value(self, value: Any, words: Words, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ContainerError(f"its values are nested deeper than {MAX_DEPTH}")
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            if abs(value) > MAX_INT:
                raise ContainerError(f"it has the number {value:.3g}, which no size or index can be")
            return value
        if isinstance(value, str):
            if not words(value):
                raise ContainerError(f"it has the word {value[:80]!r}, which no call of torch takes there")
            return value
        if isinstance(value, list):
            return self._items(value, words, depth)
        tag, content = _tagged(value)
        if tag == "node" and isinstance(content, str):
            if content not in self.nodes:
                raise ContainerError(f"a node reads {content[:80]!r}, which is not defined before it")
            return self.nodes[content]
        if tag == "tensor":
            return self._tensor(content)
        if tag == "float" and content in ("inf", "-inf", "nan"):
            return float(content)
        if tag == "dtype":
            return dtype_named(content)
        if tag == "memory_format" and isinstance(content, str) and content in _FORMATS:
            return _FORMATS[content]
        if tag == "device" and content in ("cpu", "cuda"):
            return torch.device(content)
        if tag == "ellipsis":
            return Ellipsis
        if tag in ("slice", "tuple") and isinstance(content, list):
            items = self._items(content, words, depth)
            if tag == "tuple":
                return tuple(items)
            if len(items) == 3 and all(item is None or isinstance(item, int | fx.Node) for item in items):
                return slice(*items)
        if tag == "dict" and isinstance(content, list):
            pairs = [
                self._items(pair, words, depth) for pair in content[:MAX_ITEMS] if isinstance(pair, list)
            ]
            if all(len(pair) == 2 and isinstance(pair[0], str | int) for pair in pairs):
                return dict(pairs)
        raise ContainerError(f"it has a value of an unknown kind {str(tag)[:80]!r}")

    def _items(self, items: list[Any], words: Words, depth: int) -> list[Any]:
        if len(items) > MAX_ITEMS:
            raise ContainerError(f"it has a list of {len(items)} items: {MAX_ITEMS} are the limit")
        return [self.value(item, words, depth + 1) for item in items]

    def _tensor(self, content: Any) -> Tensor:
        if not isinstance(content, list) or len(content) != 2 or not isinstance(content[0], str):
            raise ContainerError("it names a tensor in an unknown way")
        name, layout = content
        if name not in self.tensors:
            raise ContainerError(f"it names a tensor {name[:80]!r} that it does not hold")
        tensor = self.tensors[name]
        return tensor.to(memory_format=torch.channels_last) if layout == "channels_last" else tensor


def _tagged(value: Any) -> tuple[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ContainerError(f"it has a value of an unknown kind ({type(value).__name__})")
    return next(iter(value.items()))


def graph_from_json(nodes: Any, tensors: dict[str, Tensor]) -> fx.GraphModule:
    """The graph that graph_to_json wrote. ContainerError, with nothing run, for anything else."""
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MAX_NODES:
        raise ContainerError(f"its graph is no list of 1 to {MAX_NODES} nodes")
    unpacker, root, graph = Unpacker(tensors), nn.Module(), fx.Graph()
    for home in ("operators", "modules_", "tensors"):
        root.add_module(home, nn.Module())
    for place, entry in enumerate(nodes):
        if not isinstance(entry, dict):
            raise ContainerError(f"node {place} is no object")
        name, op = str(entry.get("name")), entry.get("op")
        # Names become attributes and, in fx, variables of generated source.
        if not _is_name(name):
            raise ContainerError(f"node {place} has the name {name[:80]!r}, which is no identifier")
        if name in unpacker.nodes:
            raise ContainerError(f"two nodes have the name {name}")
        if (op == "output") != (place == len(nodes) - 1):
            raise ContainerError("its graph must end with its one output")
        node = _node_from_json(entry, str(op), unpacker, root, graph)
        node.meta["path"] = _text(entry.get("path", name))
        if "parts" in entry:
            node.meta["parts"] = tuple(map(_text, _list(entry["parts"])))
        if "why_dense" in entry:
            node.meta["why_dense"] = _text(entry["why_dense"])
        unpacker.nodes[name] = node
    return fx.GraphModule(root, graph, "DeltaGraph")


def _node_from_json(
    entry: dict[str, Any], op: str, unpacker: Unpacker, root: nn.Module, graph: fx.Graph
) -> fx.Node:
    name, target = entry["name"], entry.get("target", "")
    if not isinstance(target, str):
        raise ContainerError(f"node {name} calls {str(target)[:80]!r}")
    words = partial(word_allowed, target=target)
    args = tuple(unpacker.value(_list(entry.get("args", [])), words))
    kwargs = {key: unpacker.value(value, words) for key, value in _named(entry.get("kwargs", {})).items()}
    if op == "input":
        return graph.create_node("placeholder", name, name=name)
    if op == "tensor":
        value = unpacker.value(entry.get("value"), words)
        if not isinstance(value, Tensor):
            raise ContainerError(f"node {name} is no tensor")
        root.get_submodule("tensors").register_buffer(name, value)
        return graph.create_node("get_attr", f"tensors.{name}", name=name)
    if op in ("operator", "module"):
        home = "operators" if op == "operator" else "modules_"
        build = operator_from_json if op == "operator" else _module
        # Behind "at_", because a module has attributes `to` and `half`.
        root.get_submodule(home).add_module(f"at_{name}", build(entry, unpacker))
        return graph.create_node("call_module", f"{home}.at_{name}", args, kwargs, name=name)
    if op == "function":
        function = function_named(target)
        if function is None:
            raise ContainerError(
                f"node {name} calls the function {target[:80]!r}, which a converted file may not"
            )
        if target == "builtins.getattr" and not (len(args) == 2 and isinstance(args[1], str) and not kwargs):
            raise ContainerError(f"node {name} reads an attribute in an unknown way")
        return graph.create_node("call_function", function, args, kwargs, name=name)
    if op == "method":
        if target not in METHODS:
            raise ContainerError(
                f"node {name} calls the method {target[:80]!r}, which a converted file may not"
            )
        if not args or not isinstance(args[0], fx.Node):
            raise ContainerError(f"node {name} calls a method of no node")
        return graph.create_node("call_method", target, args, kwargs, name=name)
    if op == "output":
        if (
            len(args) != 1
            or not isinstance(args[0], tuple)
            or not all(isinstance(a, fx.Node) for a in args[0])
        ):
            raise ContainerError("its output is no tuple of nodes")
        return graph.create_node("output", "output", args, name=name)
    raise ContainerError(f"node {name} is of an unknown kind {op[:80]!r}")


def operator_from_json(entry: dict[str, Any], unpacker: Unpacker) -> Operator:
    kind = entry.get("type")
    cls = operator_types().get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ContainerError(f"it has the operator {str(kind)[:80]!r}, which this deltaconvert does not know")
    return cls(**_settings(entry, unpacker))


def _module(entry: dict[str, Any], unpacker: Unpacker) -> nn.Module:
    kind = entry.get("type")
    cls = _nn_modules().get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ContainerError(f"it has the module {str(kind)[:80]!r}, which a converted file may not")
    with torch.device("meta"):  # its weights come from the file: none are made
        module = cls(**_settings(entry, unpacker))
    state = {
        key: unpacker.value(value, _no_words)
        for key, value in _named(entry.get("state", {}), dots=True).items()
    }
    module.load_state_dict(state, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def _settings(entry: dict[str, Any], unpacker: Unpacker) -> dict[str, Any]:
    settings = _named(entry.get("settings", {}))
    return {key: unpacker.value(value, _is_setting) for key, value in settings.items()}


def _is_setting(word: str) -> bool:
    return _SETTING.fullmatch(word) is not None


def _no_words(word: str) -> bool:
    return False


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and not keyword.iskeyword(name)


def _named(value: Any, dots: bool = False) -> dict[str, Any]:
    """Keyword arguments: they end up in generated source too."""
    names = (
        [part for key in value for part in (key.split(".") if dots else [key])]
        if isinstance(value, dict)
        else [""]
    )
    if not isinstance(value, dict) or len(value) > 100 or not all(map(_is_name, names)):
        raise ContainerError("it has named arguments whose names are no identifiers")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ContainerError("it has arguments that are no list")
    return value


def _text(value: Any) -> str:
    """Text for people; a terminal's control characters are none."""
    if not isinstance(value, str) or len(value) > 1000 or not value.isprintable():
        raise ContainerError("it has a path or a reason that is no line of text")
    return value


# ---- signatures


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
    raise ContainerError(
        f"the network's {side} hold a {type(tree).__name__}: a file can hold tuples, lists and dicts with "
        "text keys. Wrap the network in a module that takes and returns those, and convert that"
    )


def _constant(value: Any, side: str) -> Any:
    return Packer().value(
        value, lambda w: len(w) <= 1000, f"a constant among the network's {side}", "constant"
    )


def signature_from_json(value: Any) -> Signature:
    specs, constants = [], []
    for side in ("inputs", "outputs"):
        entry = value.get(side) if isinstance(value, dict) else None
        if not isinstance(entry, dict):
            raise ContainerError(f"it does not say what its {side} are")
        leaves: list[int] = []
        tree = _tree_from_json(entry.get("tree"), leaves)
        if leaves != list(range(len(leaves))):
            raise ContainerError(f"the leaves of its {side} are not in order")
        unpacked = Unpacker({}).value(_list(entry.get("constants")), lambda w: len(w) <= 1000)
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
    sizes = tuple(tuple(_list(size)) for size in _list(value))
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
    tag, content = _tagged(value)
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
    raise ContainerError(f"its inputs or outputs are of an unknown kind {str(tag)[:80]!r}")
