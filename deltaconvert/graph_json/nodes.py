"""The nodes of a normalised graph as JSON, and back: checked one by one."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from deltaconvert.advice import kept_beside_tensors
from deltaconvert.errors import ContainerError
from deltaconvert.graph_json.values import WAY_OUT, Packer, Unpacker, list_in
from deltaconvert.graph_json.vocabulary import METHODS, function_named, name_of, word_allowed
from deltaconvert.nodes import attribute_of, is_size, name_called, operator_of, path_of
from deltaconvert.ops.base import Operator, is_known, known_modules, operator_types
from deltaconvert.tracing.parts import parts_of

MAX_NODES = 20_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_SETTING = re.compile(r"[A-Za-z0-9_-]{0,40}")


# ---- writing


def graph_to_json(gm: fx.GraphModule) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """(nodes, tensors) of a normalised graph. ContainerError names the first node that a file cannot hold."""
    unsaved = kept_beside_tensors(gm)
    if unsaved is not None:
        raise ContainerError(unsaved)
    packer = Packer()
    return [_node_to_json(packer, gm, node) for node in gm.graph.nodes], packer.tensors


def _node_to_json(packer: Packer, gm: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    out: dict[str, Any] = {"name": node.name, "path": path_of(node)}
    if "parts" in node.meta:
        out["parts"] = list(node.meta["parts"])
    if "why_dense" in node.meta:
        out["why_dense"] = node.meta["why_dense"]
    if node.op == "placeholder":
        return {**out, "op": "input"}
    if node.op == "get_attr":
        return out | _tensor_to_json(packer, node)
    if node.op == "call_module":
        out |= _module_to_json(packer, gm, node)
    elif node.op == "call_function":
        out |= {"op": "function", "target": _function_to_json(node)}
    elif node.op == "call_method":
        if node.target not in METHODS:
            raise ContainerError(f"{path_of(node)} calls Tensor.{node.target}: {WAY_OUT}")
        out |= {"op": "method", "target": node.target}
    else:
        out["op"] = "output"
    words = partial(word_allowed, target=out.get("target", ""))
    pack = partial(packer.value, words=words, where=_where(node), name=node.name)
    out["args"] = [pack(arg) for arg in node.args]
    kwargs = node.kwargs | _length(node)
    if kwargs:
        out["kwargs"] = {key: pack(value) for key, value in kwargs.items()}
    return out


def _length(node: fx.Node) -> dict[str, int]:
    """How long x.repeat_interleave(counts) gets, which a reader has to know before it runs anything."""
    if name_called(node) != "repeat_interleave" or "output_size" in node.kwargs:
        return {}
    counts = node.args[1] if len(node.args) > 1 else node.kwargs.get("repeats")
    if not isinstance(counts, fx.Node) or is_size(counts):
        return {}
    if counts.op != "get_attr":
        raise ContainerError(
            f"{path_of(node)} repeats as often as a tensor says that is no weight, so that nobody knows how long it "
            "gets: give output_size="
        )
    return {"output_size": int(attribute_of(counts).sum())}


def _where(node: fx.Node) -> str:
    return f"{path_of(node)} ({node.target})"


def _tensor_to_json(packer: Packer, node: fx.Node) -> dict[str, Any]:
    return {"op": "tensor", "value": packer.value(attribute_of(node), _is_setting, _where(node), node.name)}


def _module_to_json(packer: Packer, gm: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    """Of an operator what its __init__ took; of a module of torch.nn that, and its weights."""
    module, operator = gm.get_submodule(str(node.target)), operator_of(node)
    kind, pack = type(module).__name__, partial(packer.value, words=_is_setting, where=_where(node))

    def packed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: pack(value, name=f"{node.name}.{key}") for key, value in values.items()}

    if operator is not None and operator_types().get(kind) is type(operator):
        return {"op": "operator", "type": kind, "settings": packed(operator.settings())}
    if _nn_modules().get(kind) is type(module) and is_known(module):
        state = packed(module.state_dict())
        return {"op": "module", "type": kind, "state": state, "settings": packed(_nn_settings(module))}
    parts = ", ".join(parts_of(module))
    way = f"its parts {parts} convert by themselves, and what that gives can be saved" if parts else WAY_OUT
    raise ContainerError(
        f"{path_of(node)} stays whole, a module of the class {type(module).__qualname__}: {way}"
    )


def _function_to_json(node: fx.Node) -> str:
    named = name_of(node.target)
    if named is None:
        home = getattr(node.target, "__module__", None)
        name = getattr(node.target, "__qualname__", node.target)
        raise ContainerError(f"{path_of(node)} calls {name} of {home}: {WAY_OUT}")
    return named


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
            node.meta["parts"] = tuple(map(_text, list_in(entry["parts"])))
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
    args = tuple(unpacker.value(list_in(entry.get("args", [])), words))
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
        function = _function_from_json(name, target, args, kwargs)
        return graph.create_node("call_function", function, args, kwargs, name=name)
    if op == "method":
        _check_method(name, target, args)
        return graph.create_node("call_method", target, args, kwargs, name=name)
    if op == "output":
        if len(args) != 1 or type(args[0]) is not tuple or not all(isinstance(a, fx.Node) for a in args[0]):
            raise ContainerError("its output is no tuple of nodes")
        return graph.create_node("output", "output", args, name=name)
    raise ContainerError(f"node {name} is of an unknown kind {op[:80]!r}")


def _function_from_json(
    name: str, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    function = function_named(target)
    if function is None:
        raise ContainerError(
            f"node {name} calls the function {target[:80]!r}, which a converted file may not"
        )
    if target == "builtins.getattr" and not (len(args) == 2 and isinstance(args[1], str) and not kwargs):
        raise ContainerError(f"node {name} reads an attribute in an unknown way")
    return function


def _check_method(name: str, target: str, args: tuple[Any, ...]) -> None:
    if target not in METHODS:
        raise ContainerError(f"node {name} calls the method {target[:80]!r}, which a converted file may not")
    if not args or not isinstance(args[0], fx.Node):
        raise ContainerError(f"node {name} calls a method of no node")


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


def _text(value: Any) -> str:
    """Text for people; a terminal's control characters are none."""
    if not isinstance(value, str) or len(value) > 1000 or not value.isprintable():
        raise ContainerError("it has a path or a reason that is no line of text")
    return value
