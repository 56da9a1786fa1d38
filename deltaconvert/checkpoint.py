"""Reading pretrained weights, and building the dense network that they belong to.

Nothing is unpickled that can run code: a file is data. Only an architecture of the user's own
(`package.module:factory`) is imported, because the user named it.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltaconvert.errors import CheckpointError, InputError, first_line
from deltaconvert.formats.archive import check_archive
from deltaconvert.formats.kind import NETWORKS, kind_of

WRAPPERS = ("state_dict", "model_state_dict", "model", "params_ema", "params", "ema", "net", "network")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
LISTED = 10  # keys named in a message
_NAMED = re.compile(r"(?P<module>[\w.]+):(?P<name>\w+)(?P<call>\(.*\))?", re.DOTALL)


class Weights(NamedTuple):
    """state: by name, on the CPU. entry: of the file that has them, "" where they are the file itself. others: entries
    beside it that hold weights of the same names, such as an average of them."""

    state: dict[str, Tensor]
    entry: str
    others: tuple[str, ...]


def read_state_dict(path: str | Path, entry: str | None = None) -> dict[str, Tensor]:
    """The state of `read_weights`."""
    return read_weights(path, entry).state


def read_weights(path: str | Path, entry: str | None = None) -> Weights:
    """The weights in a .pt, .pth, .bin or .safetensors file.

    What training programs put around them goes: dictionaries with an entry "state_dict", "model" and the
    like, and the prefixes "module." and "_orig_mod.". Of several such entries the first of WRAPPERS is taken, or the
    one that `entry` names. Entries that are no tensors (epochs, class names) are left out. CheckpointError for a file
    that holds no weights, or none of that entry, or needs code to be read; OSError if there is none.
    """
    path = Path(path)
    with open(path, "rb"):  # a missing file, a folder and one that may not be read are OSErrors
        pass
    kind = kind_of(path)
    if kind in NETWORKS:
        raise CheckpointError(
            f"{path}: is {kind.value}, a whole network: convert it without an architecture, or in Python "
            "deltaconvert.convert(*deltaconvert.load_network(file))"
        )
    is_safetensors = path.suffix == ".safetensors" or _starts_like_safetensors(path)
    content = _read_safetensors(path) if is_safetensors else _read_torch(path)
    return _unwrap(content, path, entry)


def load_into(
    model: nn.Module, state: Mapping[str, Tensor], source: str | Path = "the checkpoint"
) -> nn.Module:
    """Copy `state` into `model`, all of it or nothing; CheckpointError lists what does not fit.

    A prefix that all names of the file have, such as Lightning's "model.", goes where it is all that is in the way.
    source: what the error calls it.
    """
    own = model.state_dict()
    state = _fitting(state, own)
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own and not key.endswith("num_batches_tracked")]
    shapes = [
        f"{key} (file {_size(state[key])}, network {_size(own[key])})"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {what}: {_listed(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__}; of its {len(state)} entries\n  "
            + "\n  ".join(faults)
            + "\nIs it the right architecture, with the right number of classes (as in resnet18(classes=10))?"
        )
    # It is strict but for num_batches_tracked, which only training reads.
    model.load_state_dict(dict(state), strict=False)
    return model


def build(arch: str) -> nn.Module:
    """An untrained network in eval mode.

    arch: a name of model_zoo, or "package.module:factory", called without arguments or with literal values, as
    "resnet18(classes=10)" or "package.module:factory(classes=10, width=0.5)". InputError for what is neither.
    """
    return builder(arch)()


def builder(arch: str) -> Callable[[], nn.Module]:
    """What `build(arch)` calls: that arch names nothing is an InputError here already, at no cost."""
    text = arch.strip()
    factory = function_of(text) if _NAMED.fullmatch(text) else _of_zoo(text)
    return partial(_built, factory, arch)


def _built(factory: Callable[[], Any], arch: str) -> nn.Module:
    try:
        model = factory()
    except Exception as error:
        raise InputError(f"{arch} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{arch} returned a {type(model).__name__}, not an nn.Module")
    return model.eval()


def _of_zoo(text: str) -> Callable[..., Any]:
    """What makes the network of model_zoo that "resnet18" or "resnet18(classes=10)" names."""
    import model_zoo

    name, bracket, _ = text.partition("(")
    options = _literals(text[len(name) :], text) if bracket else {}
    try:
        model_zoo.recipe(name)
    except model_zoo.UnknownNetwork as error:
        own = _as_named(name) or "package.module:factory"
        raise InputError(f"{error} (a network of your own is {own})") from error
    return partial(model_zoo.create, name, **{"seed": 0, **options})


def function_of(text: str) -> Callable[..., Any]:
    """What "package.module:function" names, with what "package.module:function(iou=0.75)" binds; literals only."""
    match = _NAMED.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} names no function: write it as package.module:function")
    options = _literals(match["call"], text) if match["call"] else {}
    function = _callable_of(match["module"], match["name"])
    return partial(function, **options) if options else function


def _callable_of(module: str, name: str) -> Any:
    """The callable `name` of a module of the user's; InputError, with names that are close, where there is none."""
    # The console script starts without the folder it is called in; a network of one's own usually lies there.
    sys.path.insert(0, "")
    try:
        home = importlib.import_module(module)
    except ImportError as error:
        meant = _as_named(f"{module}:{name}") if module.endswith(".py") else None
        way = f"Write it as {meant}" if meant else "Is it installed, or in this folder?"
        raise InputError(f"{module} cannot be imported: {error}. {way}") from error
    except Exception as error:
        raise InputError(f"{module} raised {type(error).__name__} when imported: {error}") from error
    finally:
        sys.path.remove("")
    factory = getattr(home, name, None)
    if not callable(factory):
        known = [key for key, value in vars(home).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"{module} has no callable {name!r}{hint}")
    return factory


def _as_named(text: str) -> str | None:
    """./nets/mine.py:Net and nets.mine.Net as nets.mine:Net; None for what names no module."""
    file, colon, factory = text.partition(":")
    if not colon:
        file, _, factory = text.rpartition(".")
    module = ".".join(file.removesuffix(".py").removeprefix("./").split("/"))
    return f"{module}:{factory}" if module else None


def _literals(call: str, arch: str) -> dict[str, Any]:
    """The keyword arguments of "(a=1, b='x')"; literals only, nothing is evaluated."""
    try:
        tree = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
            raise ValueError("only keyword arguments can be given")
        options = {}
        for keyword in tree.keywords:
            if keyword.arg is None:
                raise ValueError("** cannot be given")
            options[keyword.arg] = ast.literal_eval(keyword.value)
        return options
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"cannot read {arch!r}: {error}. "
            "Give literal keyword arguments, as in package.module:factory(classes=10)"
        ) from error


def _starts_like_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**27


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{path}: no safetensors file, or damaged ({error}): copy it again") from error


def _read_torch(path: Path) -> Any:
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is no plain file of weights: reading it would run code that it names, or it is damaged "
            f"({_refused(error)}). Where you trust it, load it in the program that made it and save the "
            "weights alone: torch.save(model.state_dict(), file)"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError and others for damaged files
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({first_line(error)}). Give a state_dict saved by "
            "torch.save or as .safetensors"
        ) from error


def _refused(error: BaseException) -> str:
    """What torch refused to unpickle; its own message is a page about its options."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"it names {named[1]}" if named else "torch refuses it"


def _unwrap(content: Any, path: Path, entry: str | None) -> Weights:
    trail = _trail(content, entry)
    taken, inside = [name for name, _ in trail[1:]], trail[-1][1]
    if entry is not None and entry not in taken:
        entries = _listed(_mappings_of(content)) or "none: leave it out"
        raise CheckpointError(f"{path}: has no entry {entry!r} that holds weights; its entries are {entries}")
    state = _strip(_tensors_of(inside))
    if not state:
        found = type(inside).__name__
        if isinstance(inside, Mapping):
            found = f"entries {_listed(inside)}" if inside else "nothing"
        ways = [
            f"--entry {name}" for name in _mappings_of(inside) if _tensors_of(_trail(inside[name])[-1][1])
        ]
        way = " or ".join(ways[:LISTED]) or "a state_dict: torch.save(model.state_dict(), file)"
        raise CheckpointError(f"{path}: holds no weights but {found}. Give {way}")
    beside = [
        (name, _trail(held[name])[-1][1])
        for (_, held), name_taken in zip(trail, taken, strict=False)
        for name in _mappings_of(held)
        if name != name_taken
    ]
    others = [name for name, other in beside if not state.keys().isdisjoint(_strip(_tensors_of(other)))]
    return Weights(state, ".".join(taken), tuple(others))


def _trail(content: Any, entry: str | None = None) -> list[tuple[str, Any]]:
    """From a file's content down to weights: the name of each entry, and what it holds."""
    trail = [("", content)]
    while len(trail) <= len(WRAPPERS):  # a dictionary may hold itself
        held = trail[-1][1]
        there = _mappings_of(held)
        inner = [name for name in (entry, *WRAPPERS) if name in there]
        if not inner:
            break
        trail.append((str(inner[0]), held[inner[0]]))
    return trail


def _tensors_of(content: Any) -> dict[str, Tensor]:
    entries = content.items() if isinstance(content, Mapping) else ()
    return {key: value for key, value in entries if isinstance(value, Tensor) and isinstance(key, str)}


def _mappings_of(content: Any) -> list[str]:
    entries = content.items() if isinstance(content, Mapping) else ()
    return [key for key, value in entries if isinstance(key, str) and isinstance(value, Mapping)]


def _listed(names: Iterable[Any]) -> str:
    """A few of them."""
    names = list(map(str, names))
    return f"{', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}"


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _fitting(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the leading parts of their names that all have the same, where the rest are `own` names."""
    inner = state
    while not own.keys() & inner.keys():
        first = {key.partition(".")[:2] for key in inner}
        if len(first) != 1 or "." not in first.pop():
            return state
        inner = {key.partition(".")[2]: value for key, value in inner.items()}
    return inner


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
