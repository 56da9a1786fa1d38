"""parts: where no way captures a network as a whole, its largest modules that convert, and the rest as it was.

Detectors are such networks: a backbone and heads on maps, between lists of images and lists of boxes. The network, or a
module that stayed whole in it, is one island of the graph; inside it each such module has a `Part` in its place.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.errors import InputError, UnsupportedModel
from deltaconvert.nodes import names_of
from deltaconvert.signature import Signature, tensors_of
from deltaconvert.tracing.capture import capture, is_light
from deltaconvert.tracing.trace import Traced
from deltaconvert.tracing.twin import twin
from deltaconvert.tracing.unseen import are_named, uncounted

if TYPE_CHECKING:
    from deltaconvert.model import DeltaModel

Call = tuple[tuple[Any, ...], dict[str, Any]]
Build = Callable[[Traced, list[Tensor], str], "DeltaModel"]  # its last input: the path of what was traced
_LONG = 1_000  # a list of more is data
WHOLE = "network"  # the path of a network that is an island as a whole


class Part(nn.Module):
    """Stands in a dense network for one of its modules: converted, and dense for calls that it was not converted
    for. Dense for good once the module is another: the network around it wrote to it, or such a call did.

    uncounted: as in Stamp."""

    def __init__(self, dense: nn.Module, delta: DeltaModel, uncounted: frozenset[str] = frozenset()):
        super().__init__()
        self.dense, self.delta, self.stamp = dense, delta, Stamp(dense, uncounted)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.stamp.renew(self.dense)  # of a copy

    def __setattr__(self, name: str, value: Any) -> None:
        """The network may set something of the module: self.backbone.scale = 2."""
        if name in ("dense", "delta", "stamp") or name in vars(self):
            super().__setattr__(name, value)
        else:
            setattr(self.dense, name, value)

    def __getattr__(self, name: str) -> Any:
        """The network may ask the module for its settings: backbone.out_channels."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("dense"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.stamp.holds():
            try:
                return self.delta(*args, **kwargs)
            except InputError:  # raised before any state changes
                pass
        return self.dense(*args, **kwargs)


class Stamp:
    """Tells whether a module still is what it was converted from: its tensors and modules, and attributes of classes
    that are not torch's, with what is in their lists, dicts and objects. Looked at in every frame, so it takes no more
    than a look at each.

    uncounted: names in code that writes where torch does not count it. Tensors of such a name are compared.
    """

    def __init__(self, module: nn.Module, uncounted: frozenset[str] = frozenset()):
        self._broken, self._uncounted = False, uncounted
        self.renew(module)

    def renew(self, module: nn.Module) -> None:
        """Takes what is there, unless it did not hold."""
        modules = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
        stores: list[dict[str, Any]] = [
            store for m in modules for store in (m._parameters, m._buffers, m._modules)
        ]
        stores += [vars(m) for m in modules if not type(m).__module__.startswith("torch.")]
        held = [value for store in stores for value in store.values()]
        dicts = [value for value in held if isinstance(value, dict) and len(value) <= _LONG]
        dicts += [vars(value) for value in held if _is_object(value)]
        self._stores = [store for store in stores if store] + dicts
        self._lists = [value for value in held if isinstance(value, list) and len(value) <= _LONG]
        tensors = [x for m in modules for x in (*m._parameters.values(), *m._buffers.values())]
        self._tensors = [x for x in tensors if x is not None and not x.is_inference()]
        named = [
            x
            for m in modules
            for name, x in (*m._parameters.items(), *m._buffers.items())
            if x is not None and are_named(name, self._uncounted)
        ]
        self._compared = [(x, x.detach().clone()) for x in named]
        self._was = self._look()

    def holds(self) -> bool:
        self._broken = self._broken or not _same(self._was, self._look())
        self._broken = self._broken or not all(torch.equal(x, was) for x, was in self._compared)
        return not self._broken

    def __deepcopy__(self, memo: dict[int, Any]) -> Stamp:
        copied = Stamp(nn.Module(), self._uncounted)  # whoever copies the module renews it
        copied._broken = not self.holds()
        return copied

    def _look(self) -> tuple[list[Any], list[int]]:
        values = [value for store in self._stores for value in store.values()]
        values += [value for each in self._lists for value in each]
        return values, [x._version for x in self._tensors]


def _is_object(value: Any) -> bool:
    """A config, say: not what torch looks after."""
    if isinstance(value, Tensor | nn.Module | type) or type(value).__module__.startswith("torch."):
        return False
    return hasattr(value, "__dict__")


def _same(a: tuple[list[Any], list[int]], b: tuple[list[Any], list[int]]) -> bool:
    """The same objects, and nothing was written to tensors."""
    return a[1] == b[1] and len(a[0]) == len(b[0]) and all(map(operator.is_, a[0], b[0]))


def whole(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Traced:
    """`model` as a graph of one node, an island that says why."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    graph = fx.Graph()
    given = [graph.placeholder(f"input_{i}") if isinstance(x, Tensor) else x for i, x in enumerate(leaves)]
    args, kwargs = pytree.tree_unflatten(given, spec)
    node = graph.call_module(WHOLE, args, kwargs)
    node.meta["why_dense"] = reason
    graph.output((node,))
    gm = fx.GraphModule({WHOLE: twin(model)}, graph, type(model).__name__)
    constants = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
    # The output is one value, whatever it holds: lists of boxes are as long as each frame wants.
    return Traced(gm, Signature(spec, constants, pytree.tree_flatten(0)[1], {}), {WHOLE: reason})


def find_parts(model: nn.Module, traced: Traced, call: Call, build: Build) -> dict[str, DeltaModel]:
    """The converted parts of the modules that stayed whole in `traced`; path in its graph -> part."""
    found = {}
    for home in traced.opaque:
        if home == WHOLE:
            inside, inner, path = model, call, ""
        else:
            calls = calls_of(model, [home], call)
            if home not in calls:
                continue
            inside, inner, path = model.get_submodule(home), calls[home], f"{home}."
        for name, part in _largest(inside, inner, path, build).items():
            found[f"{home}.{name}"] = part
    return found


def _largest(module: nn.Module, call: Call, prefix: str, build: Build) -> dict[str, DeltaModel]:
    """The largest modules in `module` that convert, by path.

    Only modules with a convolution that a call of `module` calls once, on maps of all its images. What runs on regions,
    or several times, has no last frame to compare with.
    """
    images = _images(call)
    found: dict[str, DeltaModel] = {}
    todo = [name for name, child in module.named_children() if not is_light(child)]
    while todo:
        calls = calls_of(module, todo, call)
        deeper = []
        for path in todo:
            part = module.get_submodule(path)
            try:
                if path not in calls or _images(calls[path]) != images:
                    raise UnsupportedModel("it is not called once, on maps of all images")
                around = _Around(part)
                traced = capture(around, *calls[path])
                if not all(is_light(around.get_submodule(home)) for home in traced.opaque):
                    raise UnsupportedModel("a module with convolutions stays whole in it")
                frames = tensors_of(calls[path])
                found[path] = build(traced, frames, prefix + path)
            except (UnsupportedModel, InputError):
                deeper += [f"{path}.{name}" for name, child in part.named_children() if not is_light(child)]
        todo = deeper
    return found


class _Around(nn.Module):
    """Calls a module. So a module that is a single operator becomes a call in a graph as well."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.part(*args, **kwargs)


def within(gm: fx.GraphModule, path: str) -> None:
    """Rename the nodes of a part's graph (part.0.conv) to their paths in the network."""
    for node in gm.graph.nodes:
        inner = [name.split(".") for name in names_of(node)]
        names = [".".join([path, *name[name[0] == "part" :]]) for name in inner]
        node.meta.update(path=names[0], parts=tuple(names))


def _images(call: Call) -> int | None:
    """How many images a call is about: the batch of its maps, or the number of its images C H W."""
    tensors = tensors_of(call)
    batches = {x.shape[0] for x in tensors if x.dim() == 4}
    if not batches:
        return sum(x.dim() == 3 for x in tensors) or None
    return batches.pop() if len(batches) == 1 else None


def calls_of(module: nn.Module, paths: Sequence[str], call: Call) -> dict[str, Call]:
    """The inputs of the modules at `paths` in one call of `module`, for those that it calls exactly once."""
    found: dict[str, list[Call]] = {path: [] for path in paths}
    model = twin(module)

    def watch(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            found[path].append(pytree.tree_map_only(Tensor, torch.clone, (args, kwargs)))

        return hook

    for path in paths:
        called = model.get_submodule(path)
        if not isinstance(called, torch.jit.ScriptModule):  # which takes no hooks
            called.register_forward_pre_hook(watch(path), with_kwargs=True)
    args, kwargs = copy.deepcopy(call)
    model(*args, **kwargs)
    return {path: calls[0] for path, calls in found.items() if len(calls) == 1}


# ---- parts in a graph


def parts_of(gm: nn.Module) -> dict[str, Part]:
    return {path: part for path, part in gm.named_modules() if isinstance(part, Part)}


def install(gm: nn.Module, parts: Mapping[str, DeltaModel]) -> None:
    """Put each converted module in the place of its dense one; path -> module as `gm` names it."""
    names = uncounted(gm) if parts else frozenset()
    for path, delta in parts.items():
        _put(gm, path, Part(gm.get_submodule(path), delta, names))


@contextmanager
def dense_parts(gm: nn.Module) -> Iterator[None]:
    """Inside, the dense modules are in their places: a plan counts their work and runs a frame."""
    parts = parts_of(gm)
    for path, part in parts.items():
        part.stamp.holds()
        _put(gm, path, part.dense)
    try:
        yield
    finally:
        for path, part in parts.items():
            part.stamp.renew(part.dense)  # which may count its calls
            _put(gm, path, part)


def _put(gm: nn.Module, path: str, module: nn.Module) -> None:
    home, _, name = path.rpartition(".")
    gm.get_submodule(home)._modules[name] = module
